# A reward service, and the PPO loop that learns from it, in one image.
#
#   docker build -t redline-rm:cpu .
#   docker build -t redline-rm:cuda --build-arg ACCELERATOR=cuda .

ARG PYTHON_IMAGE=python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
COPY trainer trainer
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /dist .


# The environment has no pip of its own: the base image's fills it from outside.
#
# PyPI's torch for Linux brings gigabytes of CUDA libraries. For a CPU, the index with the small build is asked first,
# for the range that the package declares, and the installation of the package finds torch in place. That happens
# before any source is copied, so that a change of the code does not repeat it.
FROM ${PYTHON_IMAGE} AS environment
ARG ACCELERATOR=cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml ./
RUN python -m venv --without-pip /opt/redline \
    && python -c 'import tomllib; \
        extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
        print(*(needed for needed in extras["serve"] if needed.startswith("torch")), sep="\n")' > /torch.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    case "${ACCELERATOR}" in \
        cpu) pip --python /opt/redline/bin/python install --index-url "${TORCH_INDEX_URL}" --requirement /torch.txt ;; \
        cuda) ;; \
        *) echo "ACCELERATOR is cpu or cuda, not '${ACCELERATOR}'" >&2; exit 2 ;; \
    esac
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/redline/bin/python install "$(echo /dist/redline_rm-*.whl)[serve,ppo,quant]"


FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="redline-rm" \
      org.opencontainers.image.description="Token-level reward models over HTTP, and PPO against them" \
      org.opencontainers.image.licenses="Apache-2.0"

# The number is fixed so that folders mounted from the host can be given to it. The cache may be written by whatever
# user the container is started as.
RUN useradd --uid 10001 --user-group --create-home --no-log-init --shell /usr/sbin/nologin redline \
    && install --directory --owner=redline --group=redline --mode=1777 /cache

COPY --from=environment /opt/redline /opt/redline

# The host is the container's own: what the outside reaches is decided by what is published.
ENV PATH=/opt/redline/bin:$PATH \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib \
    PYTHONUNBUFFERED=1 \
    REDLINE_BUNDLE=/bundle \
    REDLINE_HOST=0.0.0.0

USER 10001:10001
WORKDIR /home/redline
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s --retries=3 \
    CMD ["redline", "health", "--url", "http://127.0.0.1:8000"]
ENTRYPOINT ["redline"]
CMD ["serve"]
