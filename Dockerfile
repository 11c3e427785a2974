# One image for the gateway, the workers and the snapshotter: `docker run keepfit gateway`, `… worker`, `… snapshot`.
# --build-arg EXTRAS=frames,river adds packages of these extras of pyproject.toml, --build-arg PYTHON=python:3.11-slim@sha256:…
# pins the image that it is based on by its digest.

ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS build
ARG EXTRAS=""
WORKDIR /src
# Without pip in the environment, the final stage contains no pip.
RUN python -m venv --without-pip /opt/keepfit
# Install the requirements first, so that a change of the code does not invalidate this layer.
# Wheels only, because this stage has no compiler.
COPY requirements/runtime.txt requirements/extras.txt requirements/
RUN pip --python /opt/keepfit/bin/python install --no-cache-dir --only-binary=:all: \
    -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY keepfit/ keepfit/
COPY gateway/ gateway/
COPY workers/ workers/
COPY snapshotter/ snapshotter/
# Of the extras' packages only the tested versions: the constraints name every one.
RUN pip --python /opt/keepfit/bin/python install --no-cache-dir --only-binary=:all: \
    -c requirements/extras.txt ".${EXTRAS:+[$EXTRAS]}"

FROM ${PYTHON}
# Numeric ids, so that runAsNonRoot can be checked without /etc/passwd; a named user, so that lookups of it work.
# The folder is the default of KEEPFIT_SNAPSHOT_URL.
RUN groupadd --gid 10001 keepfit \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin keepfit \
    && install -d -o 10001 -g 10001 /var/lib/keepfit/snapshots
COPY --from=build /opt/keepfit /opt/keepfit
ENV PATH=/opt/keepfit/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["keepfit"]
