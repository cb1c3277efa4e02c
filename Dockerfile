# An image that runs the demonstration, for the CPU by default:
#   docker build -t murmuration .
#   docker run --rm -v "$PWD/results:/murmuration/results" murmuration
# For CUDA (PyPI has a wheel with its CUDA libraries; the host needs NVIDIA's driver and toolkit):
#   docker build --build-arg DEVICE=cuda -t murmuration:cuda .
#   docker run --rm --gpus all murmuration:cuda --config=qmix --env-config=sc2sim with use_cuda=True
# Any other command line of `src/main.py` works in the same way.
FROM python:3.11-slim-bookworm

ARG DEVICE=cpu
ARG EXTRAS=""

RUN apt-get update \
    && apt-get install -y --no-install-recommends git libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /murmuration
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 MPLBACKEND=Agg

# Dependencies first: they are installed again only after a requirements file has changed.
COPY pyproject.toml README.md LICENSE requirements*.txt ./
RUN case "$DEVICE" in \
        cpu) pip install --index-url https://download.pytorch.org/whl/cpu \
                 --extra-index-url https://pypi.org/simple "$(grep '^torch==' requirements.txt)" ;; \
        cuda) pip install "$(grep '^torch==' requirements.txt)" ;; \
        *) echo "DEVICE must be cpu or cuda, got $DEVICE" >&2; exit 2 ;; \
    esac \
    && pip install -e ".${EXTRAS:+[$EXTRAS]}"

COPY . .

# Without arguments the image runs `make demo`'s experiment; otherwise src/main.py.
ENTRYPOINT ["sh", "-c", "if [ $# -gt 0 ]; then exec python src/main.py \"$@\"; fi; exec python -m experiments run demo", "murmuration"]
