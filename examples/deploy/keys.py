"""Certificates and node keys: ``python -m examples.deploy.keys FOLDER --address ...``.

One authority of our own (``ca.crt``) signs the SuperLink's certificate; each SuperNode
gets a key pair. ``server.key`` stays with the SuperLink, ``supernode-N`` with its node;
``ca.crt`` goes to everybody, ``supernode-N.pub`` to whoever registers nodes.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = timedelta(days=365)
CLOCK_SKEW = timedelta(hours=1)
AUTHORITY = "flwr-autoflip authority"
LOOPBACK = "127.0.0.1"
"""Where a SuperLink's own helper processes reach it."""


def main() -> None:
    """Make the files that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        *("--address", "-a"),
        action="append",
        required=True,
        help="IP address or name under which nodes reach the SuperLink; repeatable",
    )
    parser.add_argument("--nodes", type=int, default=5, help="how many key pairs")
    options = parser.parse_args()
    if options.nodes < 1:
        parser.error(f"--nodes must be at least 1, got {options.nodes}.")
    if (options.folder / "ca.crt").exists():
        parser.error(f"{options.folder} has certificates already; name a new folder.")
    make_certificates(options.folder, options.address)
    for number in range(options.nodes):
        make_node_key(options.folder / f"supernode-{number}")
    print(f"written to {options.folder}: ca.crt, server.pem, server.key, supernode-N")


def make_certificates(folder: Path, addresses: Sequence[str] = ()) -> None:
    """Write ``ca.crt``, ``server.pem`` and ``server.key``, valid for a year.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    addresses : sequence of str (default: ())
        IP addresses and host names under which the SuperLink is reached from elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority, server = (generate_private_key(SECP384R1()) for _ in range(2))
    ca = _builder(AUTHORITY, authority).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    reached = [_general_name(address) for address in (*addresses, LOOPBACK)]
    names = x509.SubjectAlternativeName(reached)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _builder("SuperLink", server)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .add_extension(usage, critical=False)
    )
    for builder, name in ((ca, "ca.crt"), (certificate, "server.pem")):
        signed = builder.sign(authority, SHA384())
        (folder / name).write_bytes(signed.public_bytes(Encoding.PEM))
    _write_secret(folder / "server.key", server, PrivateFormat.PKCS8)


def _builder(subject: str, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(AUTHORITY))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def make_node_key(path: Path) -> None:
    """Write a SuperNode's private key, and its public key beside it as ``.pub``.

    Parameters
    ----------
    path : Path
    """
    key = generate_private_key(SECP384R1())
    _write_secret(path, key, PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")


def _write_secret(
    path: Path, key: EllipticCurvePrivateKey, form: PrivateFormat
) -> None:
    """Write a private key that only its owner may read, from the first byte on."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, form, NoEncryption()))


if __name__ == "__main__":
    main()
