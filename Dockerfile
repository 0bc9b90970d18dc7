# mmrl with its presets and commands. In the root of the repository:
#   docker build --tag=mmrl .                                        # CPUs
#   docker build --tag=mmrl --build-arg=KIND=cuda .                  # NVIDIA GPUs: docker run --gpus=all
#   docker run --rm -v "$PWD/runs:/work/runs" mmrl train --config=pretrain:smoke --workdir=runs/smoke
# docs/serving.md starts the server, and launch/gke/Dockerfile makes the images of the launchers.
FROM python:3.12-slim
ARG KIND=serve
WORKDIR /build
COPY requirements*.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-serve.txt -r "requirements-$KIND.txt"
COPY pyproject.toml setup.py README.md LICENSE ./
COPY mmrl mmrl
COPY configs configs
RUN pip install --no-cache-dir --no-deps . && useradd --create-home mmrl \
    && mkdir /work && chown mmrl /work
WORKDIR /work
USER mmrl
ENV PYTHONUNBUFFERED=1
# The image holds no weights, no data and no token: all are mounted.
ENTRYPOINT ["mmrl"]
CMD ["--help"]
