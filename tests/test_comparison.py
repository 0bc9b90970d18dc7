"""Tables of evaluations: stored draws, paired differences, what is bold and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from mmrl.evaluators import statistics, stored
from mmrl.evaluators.base import Estimate, Results, direction
from mmrl.evaluators.retrieval import Retrieval
from mmrl.reporting import comparison
from mmrl.types import InputError
from tests import commands
from tests.fakes import FakeData, FakePredict, code, informed, reports

COUNT = 200
PATIENTS = [f"p{i // 2}" for i in range(COUNT)]


def measured(right, **changes):
    """Results of an evaluator whose answers are right or not, with a blind row and a constant."""
    rng = np.random.default_rng(5)
    options = {"chance": 0.25, "samples": 400}
    blind = rng.random(COUNT) < 0.25
    values = {
        "accuracy": statistics.estimate(right, PATIENTS, **options),
        "accuracy_images_permuted": statistics.estimate(blind, PATIENTS, **options),
        "median_rank": statistics.estimate(2 - np.asarray(right), PATIENTS, samples=400),
    }
    result = Results(
        "toy@1",
        values,
        COUNT,
        {"name": "toy/test", "sha256": "a", "items_sha256": "b"},
        {"size": 64, "resize": "pad", "tokenizer_sha256": "c"},
        {"no image": 3},
        {"constant_predictor": {"accuracy": 0.0}, "bootstrap": 400, "truth_sha256": "d"},
    )
    return dataclasses.replace(result, **changes)


def save(folder, result, name="toy", **content):
    given = {"step": 7, "weights_sha256": "e" * 64, "headline": {name: {"accuracy": "right"}}}
    stored.write(folder, {**given, **content}, {name: result})
    return folder


def answers(share, seed=0):
    return np.random.default_rng(seed).random(COUNT) < share


@pytest.fixture
def two(tmp_path):
    """A good encoder and a bad one."""
    good, bad = answers(0.9), answers(0.5)
    return {
        "good": stored.read(save(tmp_path / "good", measured(good))),
        "bad": stored.read(save(tmp_path / "bad", measured(bad))),
    }


def test_draws_are_those_of_the_evaluation_and_belong_to_its_results(tmp_path):
    result = measured(answers(0.7))
    folder = save(tmp_path / "one", result)
    found = stored.read(folder / "results.json")
    for name, estimate in found.estimates("toy").items():
        own = result.values[name]
        np.testing.assert_array_equal(estimate.draws, own.draws.astype(np.float32))
        assert (estimate.value, estimate.low, estimate.n) == (own.value, own.low, own.n)
        np.testing.assert_allclose(
            np.quantile(estimate.draws, [0.025, 0.975]), (own.low, own.high), atol=1e-6
        )
    first = (folder / "draws.npz").read_bytes()
    assert save(tmp_path / "two", result).joinpath("draws.npz").read_bytes() == first
    save(tmp_path / "three", measured(answers(0.2)))
    (folder / "draws.npz").write_bytes((tmp_path / "three" / "draws.npz").read_bytes())
    with pytest.raises(InputError, match="does not belong to"):
        stored.read(folder)
    (folder / "draws.npz").unlink()
    with pytest.raises(InputError, match=r"draws\.npz: No such file"):
        stored.read(folder)


def test_what_is_no_evaluation_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"No such file.*or its results\.json"):
        stored.read(tmp_path)
    path = tmp_path / "results.json"
    for text, reason in (
        ("{broken", "is not JSON"),
        ("[]", "holds no results"),
        ('{"results": {}}', "an earlier version wrote it"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            stored.read(path)


def test_draws_that_need_unpickling_are_not_read(two):
    folder = two["good"].path.parent
    np.savez(folder / "draws.npz", a=np.array([{}], dtype=object))
    content = json.loads((folder / "results.json").read_text())
    import hashlib

    digest = hashlib.sha256((folder / "draws.npz").read_bytes()).hexdigest()
    (folder / "results.json").write_text(json.dumps({**content, "draws_sha256": digest}))
    with pytest.raises(ValueError, match="allow_pickle"):
        stored.read(folder)


def test_difference_is_paired(two):
    table = comparison.compare(two)
    assert table.measures == ("toy/accuracy",)
    found = table.differences["bad"]["toy/accuracy"]
    gap = answers(0.5).astype(float) - answers(0.9)
    own = statistics.estimate(gap, PATIENTS, samples=400)
    assert found.value == pytest.approx(own.value) and found.n == COUNT
    assert (found.low, found.high) == pytest.approx((own.low, own.high), abs=1e-6)
    # Both encoders are right about the same items where either is, so pairing narrows the interval.
    one, two_ = (two[name].estimates("toy")["accuracy"] for name in ("good", "bad"))
    unpaired = np.random.default_rng(0).permutation(two_.draws) - one.draws
    low, high = np.quantile(unpaired, [0.025, 0.975])
    assert found.high - found.low < high - low


def test_better_than_every_row_is_bold_and_nothing_else(two):
    table = comparison.compare(two, measures=["toy/accuracy", "toy/median_rank"])
    assert table.best == {"toy/accuracy": "good", "toy/median_rank": "good"}  # less is better
    shown = table.markdown().splitlines()
    good, bad = table.rows[0].cells["toy/accuracy"], table.rows[1].cells["toy/accuracy"]
    assert shown[0] == "|  | toy/accuracy | toy/median_rank |"
    assert f"| good | **{good.value:.3f}** ({good.low:.3f} to {good.high:.3f}) | **" in shown[2]
    assert f"| bad | {bad.value:.3f} (" in shown[3]
    names = [row.name for row in table.rows]
    assert names == ["good", "bad", "constant", "images permuted", "chance"]
    assert shown[4].startswith("| constant | 0.000 |")
    assert shown[6] == "| chance | 0.250 |  |" and shown[7] == "| N | 200 | 200 |"
    json.dumps(table.to_dict(), allow_nan=False)


def test_nothing_is_bold_when_the_interval_of_the_difference_holds_0(tmp_path):
    close = answers(0.9).copy()
    close[:3] = ~close[:3]
    given = {
        "one": stored.read(save(tmp_path / "one", measured(answers(0.9)))),
        "two": stored.read(save(tmp_path / "two", measured(close))),
    }
    table = comparison.compare(given)
    gap = table.differences["two"]["toy/accuracy"]
    assert gap.low <= 0 <= gap.high and not table.best
    assert "**" not in table.markdown() and "Nothing is bold" in table.markdown()


def test_an_encoder_that_does_not_beat_the_blind_row_is_not_bold(tmp_path):
    blind = measured(answers(0.9)).values["accuracy_images_permuted"]
    values = dict(measured(answers(0.5)).values)
    own = measured(answers(0.5), values={**values, "accuracy": blind})
    low = measured(answers(0.01), values={**measured(answers(0.01)).values})
    given = {
        "blind": stored.read(save(tmp_path / "blind", own)),
        "low": stored.read(save(tmp_path / "low", low)),
    }
    gap = comparison.compare(given).differences["low"]["toy/accuracy"]
    assert gap.high < 0  # better than the other encoder, yet no better than without the image
    assert not comparison.compare(given).best


def test_without_draws_nothing_is_bold(tmp_path):
    def bare(right):
        result = measured(right)
        plain = {k: dataclasses.replace(v, draws=None) for k, v in result.values.items()}
        return dataclasses.replace(result, values=plain)

    given = {
        name: stored.read(save(tmp_path / name, bare(answers(share))))
        for name, share in (("one", 0.9), ("two", 0.2))
    }
    table = comparison.compare(given)
    assert not table.best and table.differences["two"]["toy/accuracy"].low is None


def test_rows_that_differ_between_encoders_are_shown_for_each(tmp_path):
    other = dict(measured(answers(0.9)).values)
    other["accuracy_images_permuted"] = Estimate(0.3, 0.2, 0.4, COUNT, 0.25)
    given = {
        "one": stored.read(save(tmp_path / "one", measured(answers(0.9)))),
        "two": stored.read(save(tmp_path / "two", measured(answers(0.9), values=other))),
    }
    names = [row.name for row in comparison.compare(given).rows if not row.encoder]
    assert names == ["constant", "one, images permuted", "two, images permuted", "chance"]


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"protocol": "toy@2"}, "protocol differs: one toy@1, two toy@2"),
        ({"data": {"name": "toy/test", "sha256": "a", "items_sha256": "x"}}, "data.items_sha256"),
        ({"data": {"name": "toy/test", "sha256": "a"}}, "items_sha256 differs: one b, two not"),
        ({"n": 199}, "n differs: one 200, two 199"),
        ({"excluded": {"no image": 4}}, "excluded.no image differs: one 3, two 4"),
        ({"details": {"bootstrap": 400, "truth_sha256": "z"}}, "truth_sha256 differs"),
        ({"details": {"bootstrap": 9, "truth_sha256": "d"}}, "options.bootstrap differs"),
        (
            {"preprocessing": {"size": 64, "resize": "stretch", "tokenizer_sha256": "c"}},
            "--may_dif",
        ),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path, changes, fact):
    given = {
        "one": stored.read(save(tmp_path / "one", measured(answers(0.9)))),
        "two": stored.read(save(tmp_path / "two", measured(answers(0.5), **changes))),
    }
    with pytest.raises(InputError, match=f"toy: .*{fact}"):
        comparison.compare(given)


def test_own_size_and_tokenizer_are_stated_and_other_preprocessing_only_where_named(tmp_path):
    own = {"size": 224, "resize": "pad", "tokenizer_sha256": "f", "other.size": 5}
    given = {
        "one": stored.read(save(tmp_path / "one", measured(answers(0.9)))),
        "two": stored.read(save(tmp_path / "two", measured(answers(0.5), preprocessing=own))),
    }
    notes = comparison.compare(given).notes
    assert "toy: preprocessing.size differs: one 64, two 224." in notes
    stretched = measured(answers(0.5), preprocessing={**own, "resize": "stretch"})
    given["two"] = stored.read(save(tmp_path / "three", stretched))
    table = comparison.compare(given, may_differ=["preprocessing.resize"])
    assert "toy: preprocessing.resize differs: one pad, two stretch." in table.notes
    with pytest.raises(InputError, match=r"preprocessing\.crop', which does not differ"):
        comparison.compare(given, may_differ=["preprocessing.resize", "preprocessing.crop"])
    seeds = measured(answers(0.5), details={"options": {"seed": 1}})
    given["two"] = stored.read(save(tmp_path / "four", seeds))
    with pytest.raises(InputError, match="differs"):
        comparison.compare(given, may_differ=["options.seed"])


def test_what_an_encoder_cannot_run_is_blank_and_what_else_is_missing_is_not_shown(tmp_path):
    def two_results(name, toy, other, **content):
        results = {key: measured(answers(s)) for key, s in (("toy", toy), ("other", other)) if s}
        headline = {key: {"accuracy": "right"} for key in results}
        stored.write(tmp_path / name, {"step": 7, "headline": headline, **content}, results)
        return stored.read(tmp_path / name)

    source = {"step": None, "source": {"family": "clip"}, "leaks": {"note": "leaks are unknown"}}
    left = {"other": "needs text.embedding"}
    foreign = two_results("foreign", 0.9, 0, left_out=left, **source)
    given = {"foreign": foreign, "good": two_results("good", 0.5, 0.9)}
    given["bad"] = two_results("bad", 0.3, 0.4)
    table = comparison.compare(given)
    assert table.measures == ("toy/accuracy", "other/accuracy")
    assert table.best == {"toy/accuracy": "foreign", "other/accuracy": "good"}
    assert "other/accuracy" not in table.rows[0].cells
    assert all(list(cells) == ["toy/accuracy"] for cells in table.differences.values())
    shown = table.markdown().splitlines()
    assert shown[2].startswith("| foreign | **0.8") and shown[2].endswith("|  |")
    assert shown[4].endswith(") |") and "| N | 200 | 200 |" in shown
    assert "foreign: encoder of the family clip, weights None; leaks are unknown." in table.notes
    assert "foreign: without other, which needs text.embedding." in table.notes
    assert table.facts["encoders"]["foreign"]["left_out"] == left
    names = [row.name for row in table.rows if not row.encoder]
    assert names == ["constant", "images permuted", "chance"]
    assert set(table.rows[3].cells) == set(table.measures)
    # An evaluator that an evaluation merely lacks is no column, and no measure.
    given["other"] = two_results("lacks", 0.9, 0)
    assert comparison.compare(given).measures == ("toy/accuracy",)
    with pytest.raises(InputError, match="other: unknown measure of other 'accuracy'"):
        comparison.compare(given, measures=["other/accuracy"])


def test_an_encoder_without_images_states_no_preprocessing_of_them(tmp_path):
    texts = measured(answers(0.9), preprocessing={"tokenizer_sha256": "c"})
    given = {
        "both": stored.read(save(tmp_path / "both", measured(answers(0.5)))),
        "text": stored.read(save(tmp_path / "text", texts)),
    }
    assert comparison.compare(given).best and "differs" not in comparison.compare(given).markdown()


def test_digests_of_parts_count_only_where_a_measure_is_of_them(tmp_path):
    def parted(digest):
        accuracy = measured(answers(0.9)).values["accuracy"]
        values = {"a@1/accuracy": accuracy, "b@1/accuracy": accuracy}
        protocols = {"a@1": {"sha256": "same"}, "b@1": {"sha256": digest}}
        return measured(answers(0.9), values=values, details={"protocols": protocols})

    given = {
        name: stored.read(save(tmp_path / name, parted(name), headline={})) for name in ("x", "y")
    }
    assert comparison.compare(given, measures=["toy/a@1/accuracy"]).measures
    with pytest.raises(InputError, match=r"protocols\.b@1\.sha256 differs"):
        comparison.compare(given, measures=["toy/b@1/accuracy"])


def test_unknown_measures_are_refused_with_the_choices(two):
    with pytest.raises(InputError, match=r"unknown measure 'retrieval/R@1'; expected one of toy/"):
        comparison.compare(two, measures=["retrieval/R@1"])
    with pytest.raises(InputError, match=r"(bad|good): .*did you mean 'accuracy'"):
        comparison.compare(two, measures=["toy/acuracy"])
    with pytest.raises(InputError, match="no evaluation was given"):
        comparison.compare({})


def test_directions():
    found = [direction(m) for m in ("image_to_text/R@1", "a/mean_rank", "attention_entropy")]
    assert found == [1, -1, 0]


def test_real_evaluators_pair(tmp_path):
    """Retrieval of an informed and of a random encoder, on the same pairs."""
    data = FakeData(reports(40))
    random = Retrieval(FakePredict(code, code), data).run(None)
    known = Retrieval(informed(data), data).run(None)
    given = {
        name: stored.read(save(tmp_path / name, result, name="retrieval", headline={}))
        for name, result in (("random", random), ("informed", known))
    }
    table = comparison.compare(given, measures=["retrieval/image_to_text/R@1"])
    assert table.best == {"retrieval/image_to_text/R@1": "informed"}
    gap = table.differences["informed"]["retrieval/image_to_text/R@1"]
    assert gap.value == 1 - random.values["image_to_text/R@1"].value and gap.low > 0


def test_command_prints_and_writes(two, tmp_path, capsys):
    paths = [f"{name}={one.path}" for name, one in two.items()]
    assert commands.run_here("mmrl.compare", *paths, f"--out={tmp_path / 'out'}") == 0
    printed = capsys.readouterr().out
    page = tmp_path / "out" / "comparison.html"
    assert printed == f"{(tmp_path / 'out' / 'comparison.md').read_text()}comparison page: {page}\n"
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["best"] == {"toy/accuracy": "good"}
    assert content["facts"]["encoders"]["bad"]["weights_sha256"] == "e" * 64


def test_names_of_encoders(two, tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("ours", "paper"):
        save(runs / name / "evaluations" / "test-00000007", measured(answers(0.9)))
    folders = [str(runs / name / "evaluations" / "test-00000007") for name in ("ours", "paper")]
    assert commands.run_here("mmrl.compare", *folders) == 0
    assert "| paper |" in capsys.readouterr().out
    twice = commands.refusal(capsys, "mmrl.compare", folders[0], folders[0])
    assert "two arguments are named 'ours'; expected NAME=PATH for each" in twice
    assert "nothing to compare was given" in commands.refusal(capsys, "mmrl.compare")


def test_runs_of_one_system_have_a_mean_and_a_deviation(tmp_path, capsys):
    shares = {"ours": (0.9, 0.8, 0.85), "paper": (0.5, 0.55, 0.45)}
    found = {}
    for name, of_seeds in shares.items():
        for seed, share in enumerate(of_seeds):
            right = answers(share, seed)
            save(tmp_path / f"{name}-{seed}", measured(right))
            found.setdefault(name, []).append(right.mean())
    given = [f"{n}={','.join(str(tmp_path / f'{n}-{seed}') for seed in range(3))}" for n in shares]
    assert commands.run_here("mmrl.compare", *given, f"--out={tmp_path / 'out'}") == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0] == "Mean ± standard deviation over the runs of each system:"
    content = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    for line, (name, values) in enumerate(found.items(), start=4):
        spread = content["systems"][name]["toy/accuracy"]
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        assert spread["runs"] == 3
        np.testing.assert_allclose([spread["mean"], spread["deviation"]], [mean, deviation])
        assert first[line] == f"| {name} | 3 | {mean:.3f} ± {deviation:.3f} |"
    assert [row["name"] for row in content["rows"][:6]] == [
        f"{name}-{run}" for name in shares for run in (1, 2, 3)
    ]
    assert "0.85" in (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")


def test_systems_of_several_runs_need_a_name_and_every_run_once(two, capsys):
    good, bad = (str(one.path) for one in two.values())
    refused = commands.refusal(capsys, "mmrl.compare", f"{good},{bad}")
    assert "names no encoder; expected NAME=PATH or NAME=PATH,PATH" in refused
    assert "expected NAME=PATH" in commands.refusal(capsys, "mmrl.compare", f"a={good},")
    assert "names a run twice" in commands.refusal(capsys, "mmrl.compare", f"a={good},{good}")
