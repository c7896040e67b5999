FROM golang:1.26-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /orgd ./cmd/orgd

FROM alpine:3
COPY --from=build /orgd /usr/local/bin/orgd
RUN adduser -D -H -u 10001 orgd && install -d -o orgd -m 0700 /data
USER orgd
VOLUME /data
EXPOSE 8080
ENV ORGD_DATA_DIR=/data ORGD_LISTEN=0.0.0.0:8080 ORGD_LOG_FORMAT=json ORGD_SHUTDOWN_DELAY=5s
ENTRYPOINT ["orgd"]
CMD ["serve"]
