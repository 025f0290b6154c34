"""`fluyt up` and `fluyt down`: an application on a Ray of our own, or on one that is there."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.checkpoint import checkpoint_dir
from cluster.config import ClusterConfig, to_dict
from cluster.local_ray import LocalRay, is_free, start_ray, wait_for_ray
from cluster.processes import end_session, session_members
from cluster.signals import interrupt_later
from cluster.state import EMPTY_DIR, State, read_state, remove_state, starting, state_dir, write_state
from model.config import read_config
from model.errors import FluytError, InvalidRequest, Unavailable
from model.options import check_parts
from model.placement import ExpertMap

Report = Callable[[str], None]

SERVING_TIMEOUT_S = 900.0  # the largest checkpoint, read from a slow disk
POLL_S = 0.1
END_GRACE_S = 1.0  # after the drain nobody has anything to finish; what Ray writes at its end, nobody reads
LOOPBACK = "127.0.0.1"


class StartError(FluytError):
    """The application did not come up."""


def up(config: ClusterConfig, join: str | None, report: Report) -> State:
    """Start everything and wait until health is SERVING. `join`: the address of a Ray, "auto" finds it.

    Raises AlreadyUpError, InvalidRequest (ports, resources, model), Unavailable, StartError.
    """
    check_model(config)
    with starting():
        return _start_own(config, report) if join is None else _start_joined(config, join, report)


def _start_own(config: ClusterConfig, report: Report) -> State:
    for field in ("port", "health_port"):
        port = getattr(config.frontdoor, field)
        if not is_free(config.frontdoor.host, port):
            raise InvalidRequest(f"frontdoor.{field}", f"port {port} is taken; name another in the config")
    if left := read_state():  # of a start that was killed
        _end(left)
    own = start_ray(config, state_dir() / EMPTY_DIR)
    state = _state(config, own)
    write_state(state)
    try:
        report("Ray starts: control store, scheduler, dashboard")
        _import_serve()
        wait_for_ray(own)
        report(f"Ray is up at {own.address}")
        with _driver(own.address):
            _deploy(config, report)
            _wait_until_serving(config, report)
    except BaseException:
        report("ending what was started")
        _end(state)
        raise
    assert state.root is not None
    state = _state(config, own, session_members(state.root.pid))
    write_state(state)
    return state


def _start_joined(config: ClusterConfig, address: str, report: Report) -> State:
    os.chdir(state_dir() / EMPTY_DIR)
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    with _driver(address) as ray:
        host = _joined_host(config)
        state = State(
            root=None,
            processes=(),
            address=f"{host}:{config.frontdoor.port}",
            health_address=f"{host}:{config.frontdoor.health_port}",
            ray_address=ray.get_runtime_context().gcs_address,
            dashboard_url="",
            temp_dir="",
            drain_s=config.frontdoor.drain_s,
        )
        report(f"joined Ray at {state.ray_address}")
        check_resources(config, ray.cluster_resources())
        write_state(state)
        try:
            _deploy(config, report)
            _wait_until_serving(config, report)
        except BaseException:
            report("ending what was started")
            _delete_application()
            remove_state()
            raise
    return state


def down(report: Report) -> bool:
    """End what `up` started and wait until it is gone; False if there was nothing."""
    state = read_state()
    if state is None:
        return False
    if not state.has_gone:
        try:
            with _driver(state.ray_address):
                _drain(state, report)
                if not state.is_ours:
                    _delete_application()
        except (FluytError, OSError, RuntimeError, ConnectionError) as error:
            report(f"could not drain: {error}")
    _end(state)
    return True


def check_model(config: ClusterConfig) -> None:
    """Raises CheckpointError or InvalidRequest for what no gang could serve."""
    model = read_config(checkpoint_dir(config.model.directory))
    ExpertMap(model.text.num_experts, config.gang.size)
    if config.model.attention == "tensor":
        check_parts(model.text, config.gang.size)


def check_resources(config: ClusterConfig, have: dict[str, float]) -> None:
    """A deployment whose resource is missing would wait for ever. Raises InvalidRequest naming it."""
    for name, need in config.resources().items():
        if have.get(name, 0) < need:
            raise InvalidRequest(
                f"resource {name!r}",
                f"need {need}, the cluster has {have.get(name, 0):g}; "
                f"start nodes with ray start --resources='{{\"{name}\": ...}}'",
            )


def _state(config: ClusterConfig, own: LocalRay, processes: Any = ()) -> State:
    return State(
        root=own.root,
        processes=tuple(processes),
        address=f"{_reachable(config.frontdoor.host)}:{config.frontdoor.port}",
        health_address=f"{_reachable(config.frontdoor.host)}:{config.frontdoor.health_port}",
        ray_address=own.address,
        dashboard_url=own.dashboard_url,
        temp_dir=str(own.temp_dir),
        drain_s=config.frontdoor.drain_s,
    )


def _reachable(host: str) -> str:
    return LOOPBACK if host in ("0.0.0.0", "[::]", "::") else host  # noqa: S104 - compared, not bound


def _joined_host(config: ClusterConfig) -> str:
    """Where a front door answers: on this machine if it is a node with the resource, else on the first."""
    import ray
    import ray.util

    if config.frontdoor.host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return config.frontdoor.host
    hosts = [
        str(node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("frontdoor")
    ]
    own = str(ray.util.get_node_ip_address())
    return LOOPBACK if own in hosts or not hosts else hosts[0]


def _import_serve() -> None:
    """While Ray starts, and from a directory in which no user's module can hide ours."""
    os.chdir(state_dir() / EMPTY_DIR)
    os.environ["RAY_AUTH_MODE"] = "token"
    with interrupt_later():
        import ray.serve

        del ray
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # our own lines say what goes on


@contextmanager
def _driver(address: str) -> Iterator[Any]:
    """Connected to Ray. Raises Unavailable."""
    _import_serve()
    import ray

    try:
        with interrupt_later():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Unavailable(f"no Ray at {address}: {error}") from error
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    try:
        yield ray
    finally:
        with interrupt_later():
            ray.shutdown()


def _deploy(config: ClusterConfig, report: Report) -> None:
    from ray import serve

    from cluster.app import APP_NAME, build

    serve.start(proxy_location="Disabled")  # the front door is our own: no Serve proxy is needed
    report("Serve is up; starting the deployments")
    target = serve.RunTarget(target=build(to_dict(config)), name=APP_NAME, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _wait_until_serving(config: ClusterConfig, report: Report) -> None:
    """Raises StartError with Serve's message when the application cannot start."""
    from ray import serve

    from cluster.app import APP_NAME

    address = f"{_joined_host(config)}:{config.frontdoor.health_port}"
    deadline = time.monotonic() + SERVING_TIMEOUT_S
    told: set[str] = set()
    while not is_serving(address):
        application = serve.status().applications.get(APP_NAME)
        if application is not None:
            if application.status.value in ("DEPLOY_FAILED", "UNHEALTHY", "NOT_STARTED"):
                _raise_start_error(application)
            for name, deployment in application.deployments.items():
                if deployment.status.value == "HEALTHY" and name not in told:
                    told.add(name)
                    report(f"{name} is there")
        if time.monotonic() > deadline:
            raise StartError(f"not serving after {SERVING_TIMEOUT_S:g} s; running: {sorted(told)}")
        time.sleep(POLL_S)
    report("serving")


def _raise_start_error(application: Any) -> None:
    messages = [deployment.message for deployment in application.deployments.values() if deployment.message]
    raise StartError("\n".join([application.message, *messages]))


def is_serving(health_address: str) -> bool:
    """What the front door says about itself, in plain text."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(health_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service="fluyt.v1.Inference")
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(request, timeout=1.0)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _drain(state: State, report: Report) -> None:
    """Nothing new is taken; what runs may end."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from cluster.app import APP_NAME

    try:
        scheduler = serve.get_deployment_handle("DecodeScheduler", APP_NAME)
        left = scheduler.drain.remote(state.drain_s).result(timeout_s=state.drain_s + 5)
    except (RayServeException, TimeoutError) as error:
        report(f"could not drain: {error}")
    else:
        report("drained" if left == 0 else f"{left} requests did not end within {state.drain_s:g} s")


def _delete_application() -> None:
    from ray import serve

    from cluster.app import APP_NAME

    serve.delete(APP_NAME)


def _end(state: State) -> None:
    """Nothing of it is left: no process, no file."""
    if state.root is not None:
        end_session(state.root, state.processes, END_GRACE_S)
        shutil.rmtree(Path(state.temp_dir), ignore_errors=True)
    remove_state()
