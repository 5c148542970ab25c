# Three images from one file: `service` (the default) serves a model repository, `slim` does so without PyTorch, and
# `example` also trains a model on the digits and folds it into a repository. docs/deployment.md says how to build and run
# them, and explains each argument.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# The lists of packages, read from pyproject.toml. Later stages depend on these lists and not on the file, so that a change
# of its other tables does not install everything again.
FROM base AS requirements
ARG EXTRA=gpu
ARG EXTRAS=""
COPY pyproject.toml ./
RUN python -c "import pathlib, re, tomllib; \
    content = tomllib.loads(pathlib.Path('pyproject.toml').read_text()); \
    project = content['project']; extras = project['optional-dependencies']; \
    chosen = [name for name in '${EXTRA},${EXTRAS}'.split(',') if name]; \
    everything = project['dependencies'] + [line for name in chosen for line in extras[name]]; \
    lists = { \
        'tools': content['build-system']['requires'], \
        'slim': [line for line in everything if re.match(r'[\w.-]+', line)[0] != 'torch'], \
        'dependencies': everything, \
        'train': extras['train'], \
    }; \
    folder = pathlib.Path('/requirements'); folder.mkdir(); \
    [(folder / f'{name}.txt').write_text('\n'.join(lines) + '\n') for name, lines in lists.items()]"

# The environment of the image has no pip: the pip of this stage installs into it. The three PIP_ arguments are pip's own
# variables; each may be empty.
FROM base AS tools
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_FIND_LINKS=""
COPY constraints.txt ./
COPY --from=requirements /requirements/tools.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/tools \
    && /opt/tools/bin/pip install -c constraints.txt -r tools.txt

FROM tools AS slim-dependencies
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_FIND_LINKS=""
COPY --from=requirements /requirements/slim.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/bnfold \
    && /opt/tools/bin/pip --python /opt/bnfold/bin/python install -c constraints.txt -r slim.txt

# PyTorch is only for proofs, which run on the CPU, so its CPU build is installed: pip prefers a local version (2.13.0+cpu)
# to the same version without. All requirements are named again, so that pip can change an installed one for PyTorch.
FROM slim-dependencies AS dependencies
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_FIND_LINKS=""
COPY --from=requirements /requirements/dependencies.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip --python /opt/bnfold/bin/python install ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} \
    -c constraints.txt -r dependencies.txt

# --root puts new files apart from those that are installed already, so that they become a layer of their own.
FROM dependencies AS train
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_FIND_LINKS=""
COPY --from=requirements /requirements/train.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip --python /opt/bnfold/bin/python install --root /new -c constraints.txt -r train.txt

FROM slim-dependencies AS code
COPY README.md pyproject.toml ./
COPY fold fold
COPY service service
RUN /opt/tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/tools/bin/pip --python /opt/bnfold/bin/python install --root /new --no-index --no-deps dist/*.whl

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="bnfold" \
      org.opencontainers.image.description="Serves networks with folded BatchNorm, and proves on request that they compute the same"
# HOME is the only place that a read-only container can write to. /models exists and belongs to the user, because a new named
# volume gets the owner of the folder on which it is mounted.
RUN groupadd --gid 10001 bnfold \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bnfold \
    && install -d -o 10001 -g 10001 /models
ENV PATH="/opt/bnfold/bin:${PATH}" \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /models
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["bnfold"]

FROM runtime AS serving
ENV BNFOLD_GRPC_PORT=8001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; s = os.environ.get('BNFOLD_TLS_CERTIFICATE'); r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=ssl._create_unverified_context())).open(f\"http{'s' if s else ''}://127.0.0.1:{os.environ.get('BNFOLD_PORT') or 8000}/v2/health/ready\", timeout=4)"]
CMD ["serve", "/models", "--host", "0.0.0.0"]

FROM serving AS slim
COPY --from=slim-dependencies /opt/bnfold /opt/bnfold
COPY --from=code /new/opt/bnfold /opt/bnfold

FROM serving AS complete
COPY --from=dependencies /opt/bnfold /opt/bnfold
COPY --from=code /new/opt/bnfold /opt/bnfold

FROM complete AS example
HEALTHCHECK NONE
COPY --from=train /new/opt/bnfold /opt/bnfold
# The networks of the example are no part of the wheel.
COPY models /opt/example/models
ENV PYTHONPATH=/opt/example
# An existing model is kept, so the job can run at every start.
ENTRYPOINT ["/bin/sh", "-euc"]
CMD ["if [ -f digits/1/manifest.json ]; then echo 'digits is in the repository already'; exit 0; fi; \
    python -m models.digits train --arch models.resnet:resnet --out /tmp/digits.pt; \
    bnfold fold /tmp/digits.pt --arch models.resnet:resnet --out /models --name digits"]

FROM complete AS service
