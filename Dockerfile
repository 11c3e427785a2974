# One image for the gateway, the workers and the snapshotter: `docker run keepfit gateway`, `… worker`, `… snapshot`.

FROM python:3.11-slim AS build
WORKDIR /src
# Without pip in the environment, the final stage contains no pip.
RUN python -m venv --without-pip /opt/keepfit
# Install the requirements first, so that a change of the code does not invalidate this layer.
# Wheels only, because this stage has no compiler.
COPY requirements/runtime.txt requirements/
RUN pip --python /opt/keepfit/bin/python install --no-cache-dir --only-binary=:all: \
    -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY keepfit/ keepfit/
COPY gateway/ gateway/
COPY workers/ workers/
COPY snapshotter/ snapshotter/
RUN pip --python /opt/keepfit/bin/python install --no-cache-dir --no-deps .

FROM python:3.11-slim
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
