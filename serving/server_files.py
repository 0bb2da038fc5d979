"""What a server reads beside the models: batching, monitoring, and the container it runs in."""

IMAGE = "tensorflow/serving:2.21.0"
"""The server of the TensorFlow that wrote the models: an older one need not know their operators."""

POLL_SECONDS = 10

BATCHING = """\
# Requests that arrive while others are computed are computed together. A request never waits for others to come.
max_batch_size { value: 32 }
batch_timeout_micros { value: 0 }
# Batches in the queue; a request beyond them is answered UNAVAILABLE at once, and the client tries again.
max_enqueued_batches { value: 100 }
# num_batch_threads: as many as there are cores, unless set here.
# allowed_batch_sizes: none. No shape is compiled, so a batch filled up would only cost time.
# Padding stays off: TF Serving pads with a tensor's first element, which is 1 in a padding mask, so padding would be read
# as text. Who asks from_token_ids under load sends all requests with one length; texts need no padding.
pad_variable_length_inputs: false
"""

MONITORING = """\
# Counters and latencies for Prometheus, on the REST port.
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""

HEALTH = (
    "for name in $(sed -n 's/^ *name: \"\\(.*\\)\"$/\\1/p' /models/models.config); do "
    "exec 3<>/dev/tcp/127.0.0.1/8501 || exit 1; "
    "printf 'GET /v1/models/%s HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' \"$name\" >&3; "
    "grep -q '\"AVAILABLE\"' <&3 || exit 1; done"
)
"""Healthy: every model of models.config has a version that answers. The image has bash, and neither curl nor wget."""

COMPOSE = f"""\
# docker compose up -d, in this folder. Models are added, upgraded and rolled back without a restart.
services:
  serving:
    image: {IMAGE}
    platform: linux/amd64  # there is no other
    # The server itself: the image's own entry point would add flags for a single model.
    entrypoint: [tensorflow_model_server]
    command:
      - --port=8500
      - --rest_api_port=8501
      - --model_config_file=/models/models.config
      - --model_config_file_poll_wait_seconds={POLL_SECONDS}
      - --enable_batching=true
      - --batching_parameters_file=/models/batching.config
      - --monitoring_config_file=/models/monitoring.config
    # This machine alone: the server asks nobody for a password.
    ports: ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    volumes: [".:/models:ro"]
    user: "65534:65534"
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: unless-stopped
    healthcheck:
      test:
        - CMD
        - bash
        - -c
        - >-
          {HEALTH.replace("$", "$$")}
      interval: 15s
      timeout: 5s
      retries: 3
      start_period: 60s
"""

FILES = {"batching.config": BATCHING, "monitoring.config": MONITORING, "docker-compose.yml": COMPOSE}
"""Written where they are missing; a person's changes stay."""

MODELS_HEADER = f"""\
# Written by `python -m serving`; the server reads it again every {POLL_SECONDS} seconds. Each model's version is named, so a
# deployment or a rollback is one number here, and no folder that appears is served by itself. No version labels: TF Serving
# refuses a label that moves to a version which the same file makes it load.
"""
