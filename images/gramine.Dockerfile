# Expands, measures and runs bundles of `strongroom job build --enclave gramine`; nothing of the bundle is in the image.
#
#   docker build -t strongroom-gramine -f images/gramine.Dockerfile images
#   docker run --rm -v BUNDLE:/bundle strongroom-gramine measure     writes job.manifest.sgx and job.sig
#   docker run --rm --device /dev/sgx_enclave --device /dev/sgx_provision -v /var/run/aesmd:/var/run/aesmd \
#     -v BUNDLE:/bundle -v SEALED:/bundle/sealed/NAME strongroom-gramine run
# The trust service's bundle (`strongroom service build`) is run in the same way, with -p 8700:8700 -p 8701:8701.
#
# Not built by any test of ours: no machine of ours reaches packages.gramineproject.io (docs/hardware-untested.md).
FROM debian:12-slim
ARG GRAMINE=1.9
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl gnupg \
 && curl -fsSLo /usr/share/keyrings/gramine.gpg https://packages.gramineproject.io/gramine-keyring-bookworm.gpg \
 && curl -fsSLo /usr/share/keyrings/intel-sgx.asc https://download.01.org/intel-sgx/sgx_repo/ubuntu/intel-sgx-deb.key \
 && echo "deb [signed-by=/usr/share/keyrings/gramine.gpg] https://packages.gramineproject.io/ bookworm main" \
    > /etc/apt/sources.list.d/gramine.list \
 && echo "deb [signed-by=/usr/share/keyrings/intel-sgx.asc] https://download.01.org/intel-sgx/sgx_repo/ubuntu jammy main" \
    > /etc/apt/sources.list.d/intel-sgx.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends "gramine=${GRAMINE}*" libsgx-dcap-default-qpl \
 && rm -rf /var/lib/apt/lists/*
COPY gramine-bundle /usr/local/bin/gramine-bundle
WORKDIR /bundle
ENTRYPOINT ["/usr/local/bin/gramine-bundle"]
