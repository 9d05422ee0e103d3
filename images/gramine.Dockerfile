# Expands, measures and runs bundles of `strongroom job build --enclave gramine`; nothing of the bundle is in the image.
#
#   docker build -t strongroom-gramine -f images/gramine.Dockerfile images
#   docker run --rm -v BUNDLE:/bundle strongroom-gramine measure     writes job.manifest.sgx and job.sig
#   docker run --rm --network host --device /dev/sgx_enclave --device /dev/sgx_provision -v /var/run/aesmd:/var/run/aesmd \
#     -v BUNDLE:/bundle -v SEALED:SEALED strongroom-gramine run      SEALED: the folder to which BUNDLE/sealed/NAME leads
#
# --network host: a bundle's launch/launch.json names the trust service as https://127.0.0.1:8701, which without it would be
# the container itself. Name another address there, and the option is not needed. The trust service's own bundle
# (`strongroom service build`) needs `--network host`, or -p 8700:8700 -p 8701:8701, and no SEALED.
# `try` (gramine-direct) needs --security-opt seccomp=unconfined, or Gramine's profile for Docker.
#
# Quotes are made by the host's AESM service, which the container reaches by its socket. On the host, once, from Intel's
# repository (as below): sgx-aesm-service, libsgx-aesm-ecdsa-plugin, libsgx-aesm-quote-ex-plugin, libsgx-dcap-default-qpl;
# in /etc/sgx_default_qcnl.conf the PCCS that knows this machine ("pccs_url"); then `systemctl restart aesmd`.
#
# Ubuntu, as Gramine 1.9's own packages are for it (24.04 and 22.04) and no longer for Debian. The measurement covers
# Gramine's runtime: whoever measures and whoever runs need one and the same package.
# Not built by any test of ours: no machine of ours reaches packages.gramineproject.io (docs/hardware-untested.md).
FROM ubuntu:24.04
ARG GRAMINE=1.9
ARG CODENAME=noble
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && curl -fsSLo /etc/apt/keyrings/gramine.gpg https://packages.gramineproject.io/gramine-keyring-${CODENAME}.gpg \
 && curl -fsSLo /etc/apt/keyrings/intel-sgx.asc https://download.01.org/intel-sgx/sgx_repo/ubuntu/intel-sgx-deb.key \
 && echo "deb [arch=amd64 signed-by=/etc/apt/keyrings/gramine.gpg] https://packages.gramineproject.io/ ${CODENAME} main" \
    > /etc/apt/sources.list.d/gramine.list \
 && echo "deb [arch=amd64 signed-by=/etc/apt/keyrings/intel-sgx.asc] https://download.01.org/intel-sgx/sgx_repo/ubuntu ${CODENAME} main" \
    > /etc/apt/sources.list.d/intel-sgx.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends "gramine=${GRAMINE}*" \
 && rm -rf /var/lib/apt/lists/*
COPY gramine-bundle /usr/local/bin/gramine-bundle
WORKDIR /bundle
ENTRYPOINT ["/usr/local/bin/gramine-bundle"]
