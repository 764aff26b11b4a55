"""Options of the transport reach the drivers: a Redis server that speaks TLS only, with a certificate of ours."""

import datetime
import ipaddress
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from model_opt.core.storage import RedisBackend
from model_opt.errors import StoreUnavailable
from model_opt.federation.stream import Stream
from model_opt.storage.open import open_store
from model_opt.storage.retry import Retry
from model_opt.storage.testing import RESNET18, entries
from servers.starting import Server, free_port


def certificate(folder: Path) -> tuple[Path, Path]:
    """The files of a certificate that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "model_opt test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, encoding = folder / "server.pem", serialization.Encoding.PEM
    pem.write_bytes(made.public_bytes(encoding))
    secret = folder / "server.key"
    plain = serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    return pem, secret


@pytest.fixture
def tls_server(redis_server: Server, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Port and certificate of a server; where the session's Redis is given from outside there is no program."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed here")
    (pem, secret), port = certificate(tmp_path), free_port()
    place = ["--dir", str(tmp_path), "--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), "--save", ""]
    tls = ["--tls-cert-file", str(pem), "--tls-key-file", str(secret), "--tls-auth-clients", "no"]

    def ready() -> None:
        import redis

        with redis.Redis("127.0.0.1", port, ssl=True, ssl_ca_certs=str(pem)) as client:
            client.ping()

    server = Server(name="redis-tls", url="", command=[program, *place, *tls], ready=ready, log=tmp_path / "redis.log")
    server.start()
    yield port, pem
    server.stop()


@pytest.mark.server
def test_tls_options_reach_the_driver(tls_server: tuple[int, Path]) -> None:
    port, pem = tls_server
    envelope = Stream(origin="alpha").mint(RESNET18, entries(2))
    by_url = open_store(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={quote(str(pem))}")
    assert by_url.append(envelope) == 1
    by_class = RedisBackend("127.0.0.1", port, ssl=True, ssl_ca_certs=str(pem))
    assert len(by_class.rows()) == 2
    for stranger in (
        RedisBackend("127.0.0.1", port, ssl=True, retry=Retry(deadline_s=0.2)),
        RedisBackend("127.0.0.1", port, retry=Retry(deadline_s=0.2)),
    ):
        with pytest.raises(StoreUnavailable):
            stranger.rows()
        stranger.close()
    by_url.close()
    by_class.close()
