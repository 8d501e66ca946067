# HM-VNet for the HECKTOR grand challenges: one image for 2025 and 2026 (HMVNET_INTERFACE), and of 2025
# for Task 1, Task 2 or both (HMVNET_TASK).
#
# The base brings Python, torch and the CUDA libraries. CUDA 12.6 is the build line of PyTorch that
# runs on the platform's T4 (compute capability 7.5) and with older drivers too, and its cuDNN 9
# and CUDA 12 libraries are those that onnxruntime-gpu below 1.27 looks for. A plain Debian or
# python base works as well: torch is then installed like any other requirement.
ARG BASE_IMAGE=docker.io/pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="HM-VNet" \
      org.opencontainers.image.description="GTVp/GTVn segmentation and recurrence-free survival risk from head-and-neck PET/CT (HECKTOR 2025 and 2026). Not for clinical use." \
      org.opencontainers.image.licenses="Apache-2.0"

# The platform runs any user but root. Some bases (Ubuntu 24.04) have a user 1000 already.
RUN mkdir -p /input /output /opt/app /opt/ml/model \
    && { getent group 1000 || groupadd --gid 1000 user; } \
    && { getent passwd 1000 || useradd --uid 1000 --gid 1000 --no-log-init --home-dir /tmp user; } \
    && chown 1000:1000 /output

# A folder of wheels can be given for the build (see build.sh); it is no part of the image.
ARG PIP_FIND_LINKS
COPY requirements.txt /opt/app/
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --root-user-action=ignore \
        --requirement /opt/app/requirements.txt

# What a challenge wants: an answer to every case (a hospital builds with ON_ERROR=refuse), which
# year's platform it is for, where that is not to be seen by the input, and of 2025 which task.
ARG ON_ERROR=answer
ARG INTERFACE=auto
ARG TASK=both
# At run time the root file system is read-only and only /tmp and /output can be written. Malloc
# with transparent huge pages takes a third to a half off the CPU time of large volumes.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/app/model \
    HMVNET_TASK=${TASK} \
    HMVNET_ON_ERROR=${ON_ERROR} \
    HMVNET_INTERFACE=${INTERFACE} \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    CUDA_CACHE_PATH=/tmp/cuda \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# What changes seldom comes first: a change of code leaves the layers above as they are.
ARG WEIGHTS=hmvnet-base
COPY --chown=1000:1000 weights/${WEIGHTS} /opt/app/weights/${WEIGHTS}
COPY --chown=1000:1000 model/hmvnet /opt/app/model/hmvnet
COPY --chown=1000:1000 process.py /opt/app/
# Byte code is written now, since it cannot be later; a missing import fails here, not on the platform.
RUN python3 -m compileall -q /opt/app/model \
    && python3 -c "import hmvnet.container, hmvnet.answering.fallback, hmvnet.writing.pictures" \
    && python3 /opt/app/process.py --help > /dev/null

WORKDIR /opt/app
USER 1000:1000
ENTRYPOINT ["python3", "/opt/app/process.py"]
