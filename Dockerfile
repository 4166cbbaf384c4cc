# The appliance as a container image; docs/packaging.md says how to run it.
#   docker build --tag signer .
#   docker build --tag signer-softhsm --target softhsm .   to try it out: the image is its own HSM
#
# The base image is named by its tag, which moves. Pin it by digest where you build: a digest
# names the content of one registry on one day, and yours was not examined here.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# All packages of the lock, each checked by its hash; what only the demo needs stays in this stage.
COPY requirements.lock ./
RUN pip download --require-hashes --no-deps --only-binary :all: --dest wheels --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY signer signer
# From these wheels alone, our own build included.
# DL3013 wants a version: there is one of each package in the folder, the lock's.
# hadolint ignore=DL3013
RUN python -m venv --without-pip /opt/signer \
    && pip --python /opt/signer/bin/python install --no-index --find-links wheels ".[server,postgresql,tracing]"

FROM python:3.11-slim-bookworm AS base
RUN useradd --uid 10001 --user-group --home-dir /var/lib/signer --shell /usr/sbin/nologin signer \
    && install --directory --owner signer --group signer --mode 0700 /var/lib/signer
COPY --from=build /opt/signer /opt/signer
ENV PATH=/opt/signer/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/signer
# Everything that is written: registry (SQLite), audit log, policy, latches. The root may be read-only.
VOLUME /var/lib/signer
EXPOSE 7443 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["signer"]

# With SoftHSM: keys are in files of the volume. For trying out, never for real signatures.
FROM base AS softhsm
USER 0
# DL3008 wants versions of packages: Debian keeps only the newest of a release, with its security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssl softhsm2 \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["signer", "health", "--client", "/var/lib/signer/client-operator.yaml"]
CMD ["dev", "up", "/var/lib/signer"]

# The last stage is built by default. The HSM's module comes on top: see docs/packaging.md.
FROM base AS appliance
# `client` in signer.yaml names the client file of this call.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["signer", "health", "--config", "/etc/signer/signer.yaml"]
CMD ["serve", "--config", "/etc/signer/signer.yaml"]
