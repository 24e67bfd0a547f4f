# Two stages: the SDK builds one static file; the image is that file, the CAs that it trusts and the time zones
# for reports.
FROM mcr.microsoft.com/dotnet/sdk:10.0-noble AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates clang cmake git lld libssl-dev libzstd-dev make npm tzdata zlib1g-dev
WORKDIR /src
COPY . .
# Set this if .git is not in the context, or to give another version.
ARG VERSION
ENV CI=true
RUN make publish sbom && ldd out/ses | grep -q 'statically linked' && mkdir -m 700 /empty

FROM scratch
LABEL org.opencontainers.image.title="SeS" \
      org.opencontainers.image.description="Keeps the history of service status from the alerts of Prometheus and Alertmanager" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /usr/share/zoneinfo /usr/share/zoneinfo
COPY --from=build /src/out/doc /usr/share/doc/ses
COPY --from=build /src/out/ses /ses
# /data belongs to the user of the image, so that SeS also runs without a volume. It writes nowhere else.
COPY --from=build --chown=65532:65532 /empty /data
USER 65532:65532
ENV OXSES_DATADIR=/data SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
VOLUME /data
EXPOSE 8888
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["/ses", "probe"]
ENTRYPOINT ["/ses"]
