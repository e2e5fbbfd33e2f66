# The image of every node and job: `docker build -t REGISTRY/rayapp:VERSION .` Torch is the CPU build; for GPUs build with
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130. Its root file system may be read-only: Ray writes to /tmp,
# /dev/shm and the home, rayapp to the root directory that is mounted.
FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/rayapp
WORKDIR /source
COPY constraints.txt ./
RUN /opt/rayapp/bin/pip install -c constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY rayapp ./rayapp
COPY deployments ./deployments
RUN /opt/rayapp/bin/pip wheel --no-deps --wheel-dir /wheel . \
    && /opt/rayapp/bin/pip install -c constraints.txt "$(ls /wheel/*.whl)[redis]"

FROM python:3.12-slim-bookworm
# wget: KubeRay's probes ask with it.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 ray && useradd --uid 1000 --gid 1000 --create-home ray
COPY --from=build /opt/rayapp /opt/rayapp
# Ray's processes start in this environment, the same on every node; a test holds it to the code's.
ENV PATH=/opt/rayapp/bin:$PATH \
    RAY_SERVE_HAPROXY_BINARY_PATH=/opt/rayapp/bin/rayapp-haproxy \
    RAY_SERVE_THROUGHPUT_OPTIMIZED=1 \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER=1s \
    RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S=2 \
    RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S=2 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_gcs_rpc_server_reconnect_timeout_s=600 \
    RAY_agent_register_timeout_ms=180000 \
    RAY_raylet_start_wait_time_s=180
USER 1000:1000
WORKDIR /home/ray
CMD ["rayapp", "--help"]
