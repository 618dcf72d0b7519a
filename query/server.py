"""The process behind `python main.py query`: a gRPC server, its threads, its end."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import metrics
from config import ConfigError
from live_listener import Following
from metrics import Sample, Stats
from query import collector_pb2 as pb
from query.access import Access
from query.calls import Calls
from query.collector_pb2_grpc import add_CollectorServiceServicer_to_server
from query.interceptor import AccessInterceptor
from query.options import QueryOptions, Tls
from query.pulse import LONGEST_BEAT_SEC, Pulse
from query.service import CollectorService
from query.silence import BESIDE, Silence, SilenceInterceptor
from query.streams import Hub, Streams
from retry import StopFlag, Stopping
from signs import Signs

SERVICE = pb.DESCRIPTOR.services_by_name["CollectorService"].full_name
WAITING_PER_WORKER = 16  # calls that wait for their turn, for each that has it
MOST_REQUEST_BYTES = 1 << 20
MOST_ANSWER_BYTES = 16 << 20
SPARE = 16  # to be told that there is no room
MORE_CONNECTIONS = 200  # than there can be calls
_LOOK_SEC = 0.2


class QueryServer:
    """Serves until `stop`, which any thread or signal handler may call.

    Raises, from `run`: `ConfigError` and `SchemaMismatch` before the first call is taken. A database that
    is away at the start is waited for, and calls are told so.
    """

    def __init__(self, options: QueryOptions, stop: StopFlag) -> None:
        self._options = options
        self._stop = stop
        self._failure: BaseException | None = None
        self.hub = Hub()
        self._health = health.HealthServicer()
        self._silence = Silence(stop)
        self._pulse = Pulse(
            options.database_url,
            options.table,
            stop,
            self._say_health,
            enable_timescale=options.enable_timescale,
        )
        self._calls = Calls(
            options.database_url, options.workers, options.timeout_sec, lambda: self._pulse.answers
        )
        self._threads: ThreadPoolExecutor | None = None
        self.port: int | None = None
        self._stats = Stats()
        self._following = Following(
            options.database_url, stop, self._stats, self.hub.hear, direct_url=options.direct_url
        )

    def run(self) -> None:
        """Serve, and at a stop finish the calls in hand."""
        _quiet()
        self._say_health(False)
        try:
            self._pulse.first()
            server = self._listen()
        except BaseException:
            self._pulse.close()
            raise
        for work in (self._pulse.run, self._following.run, self._silence.run):
            threading.Thread(target=self._guard, args=(work,), daemon=True).start()
        server.start()
        self._tell_start()
        try:
            while not self._stop.is_set() and self._failure is None:
                self._stop.pause(_LOOK_SEC)
        finally:
            self._end(server)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more calls, finish those in hand, and end `run`. Returns at once and takes no lock."""
        self._stop.set()

    def signs(self) -> Signs:
        """What it shows of itself while it runs."""
        return Signs(
            progress=self._pulse.progress,
            stuck_after_sec=self._options.stuck_sec + LONGEST_BEAT_SEC,
            started=lambda: self.port is not None,
            stopping=self._stop.is_set,
            checks=self._pulse.check,
            samples=self._samples,
            status=lambda: "answers" if self._pulse.answers else "the database does not answer",
        )

    def _samples(self) -> Iterator[Sample]:
        yield from metrics.of_servers(self._stats)
        yield from self._pulse.samples()
        yield metrics.LISTENING, (), int(self._following.connected)
        yield metrics.CONNECTIONS, ("in_use",), self._calls.in_use
        yield metrics.CONNECTIONS, ("idle",), self._calls.idle
        yield metrics.QUERY_STREAMS, (), self.hub.count

    def _listen(self) -> grpc.Server:
        options = self._options
        most = options.workers * (1 + WAITING_PER_WORKER) + options.most_streams + SPARE + 2 * BESIDE
        self._threads = ThreadPoolExecutor(most, "call")
        server = grpc.server(
            self._threads,
            interceptors=[
                AccessInterceptor(Access(options.token, options.delete_token)),
                SilenceInterceptor(self._silence, SERVICE),
            ],
            options=[*_CHANNEL, ("grpc.max_allowed_incoming_connections", most + MORE_CONNECTIONS)],
            maximum_concurrent_rpcs=most,
        )
        streams = Streams(
            self._calls,
            self.hub,
            options.table,
            options.most_streams,
            lambda: self._following.connected and self._pulse.answers,
            options.timeout_sec,
        )
        service = CollectorService(
            self._calls,
            streams,
            options.table,
            now=lambda: datetime.now(UTC),
            publish_alerts=options.publish_alerts,
        )
        add_CollectorServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self.port = _bind(server, options)
        return server

    def _end(self, server: grpc.Server) -> None:
        """New calls are turned away first; streams end at once, questions when they are answered."""
        self._stop.set()
        self._health.enter_graceful_shutdown()
        ended = server.stop(grace=0.75 * self._options.shutdown_sec)
        self.hub.stop()
        ended.wait()
        self._calls.close()
        if self._threads is not None:  # gRPC leaves them waiting for more
            self._threads.shutdown(wait=False)
        structlog.get_logger().info("query_stopped")

    def _guard(self, work: Callable[[], None]) -> None:
        """Runs a thread; its bug ends the process, in `run`."""
        try:
            with contextlib.suppress(Stopping):  # nothing is in hand there
                work()
        except Exception as bug:  # noqa: BLE001  handed to the main thread, which tells it
            self._failure = bug

    def _say_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in (health.OVERALL_HEALTH, SERVICE):
            self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    def _tell_start(self) -> None:
        options = self._options
        log = structlog.get_logger()
        log.info(
            "query_started",
            host=options.host,
            port=self.port,
            tls=options.tls is not None,
            client_certificates=options.tls is not None and options.tls.client_ca is not None,
            token=options.token is not None,
            deleting=options.delete_token is not None,
        )
        if options.tls is None and (options.token or options.delete_token):
            log.warning("query_without_tls", remedy="set QUERY_CERTIFICATE and QUERY_KEY")


_CHANNEL: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MOST_REQUEST_BYTES),
    ("grpc.max_send_message_length", MOST_ANSWER_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not half of the calls
    ("grpc.keepalive_time_ms", 30_000),  # a caller that vanished without a word is found within 40 s
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Whoever connects and says nothing keeps a file of ours, of which a process has 1,024 as a rule.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),  # a caller connects again by itself
]


def _bind(server: grpc.Server, options: QueryOptions) -> int:
    """The port that it listens at. Raises `ConfigError`."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{host}:{options.port}"
    try:
        if options.tls is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, _credentials(options.tls)))
    except RuntimeError:
        raise ConfigError(
            f"QUERY_HOST and QUERY_PORT are {address}, where this process cannot listen; they take an"
            " address of this machine and a port that is free"
        ) from None


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Read now: gRPC would say of a wrong file only that it cannot listen. Raises `ConfigError`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")  # or it would ask at the terminal
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
        return grpc.ssl_server_credentials(
            [(tls.key.read_bytes(), tls.certificate.read_bytes())],
            root_certificates=tls.client_ca.read_bytes() if tls.client_ca else None,
            require_client_auth=tls.client_ca is not None,
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"QUERY_CERTIFICATE is {str(tls.certificate)!r} and QUERY_KEY {str(tls.key)!r}, which cannot"
            f" be used ({error}); they take a certificate and its key in PEM, QUERY_CLIENT_CA certificates"
        ) from None


def _quiet() -> None:
    """What gRPC says by itself is said here in other words, and its tracebacks may quote data."""
    logging.getLogger("grpc").addHandler(logging.NullHandler())
    logging.getLogger("grpc").propagate = False
