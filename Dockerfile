# mec in a container:   docker build -t mec .
#   docker run --rm mec doctor
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" mec pretrain /data/photographs --out /data/runs/photographs
#   docker run --rm --entrypoint make mec test
# PyTorch's wheels include CUDA; the host needs only the driver and NVIDIA's container toolkit.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /mec
COPY . .
RUN make demo && rm -rf demo

ENV PATH="/mec/.venv/bin:$PATH"
ENTRYPOINT ["mec"]
CMD ["--help"]
