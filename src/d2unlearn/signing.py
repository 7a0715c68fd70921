"""Signatures of artifacts: who made every file of a folder, for those who do not trust everybody who can write there.

`model.sig` lists all files of the folder with their sha256 as the manifest of OpenSSF Model Signing does: an in-toto statement
(predicate `https://model_signing/signature/v1.0`) in a DSSE envelope in a Sigstore bundle, signed with an Ed25519 key. What
holds for the person who verifies it: these are the files that the holder of the key signed, and no others are there. Files that
are changed between the check and the loading are not noticed. Needs `cryptography` (extra `[sign]`).

Source: github.com/sigstore/model-transparency (`_signing/signing.py`, `Payload`); DSSE: github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2unlearn.errors import ArtifactError, ConfigError
from d2unlearn.runtime import hash_file, read_json, said_if_long, write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FILE = "model.sig"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
MAKE_KEYS = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub"


def sign(folder: Path, key_file: str | Path) -> Path:
    """Write the signature of all files in `folder` with the private key (PEM) in `key_file`; return its path.

    Raises `ConfigError` for a file that holds no such key, `ArtifactError` for a folder with links to folders.
    """
    key = private_key(key_file)
    payload = json.dumps(statement(folder.resolve().name, file_digests(folder)), sort_keys=True).encode()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD,
        "signatures": [{"sig": base64.b64encode(key.sign(pre_authentication(payload))).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []}
    path = folder / SIGNATURE_FILE
    write_json(path, {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope})
    return path


def signer(key_file: str | Path | None) -> Callable[[Path], Path | None]:
    """What signs an artifact once everything is in it, as `sign` does; without a key it does nothing.

    Raises `ConfigError` at once for a file that holds no key: better said now than in the end.
    """
    if key_file is None:
        return lambda folder: None
    private_key(key_file)
    return lambda folder: sign(folder, key_file)


def check_signature(folder: Path, key_file: str | Path) -> None:
    """Raises `ArtifactError` unless the folder holds exactly the files that the holder of the key signed.

    `key_file`: the public key (PEM). Raises `ConfigError` when it holds none.
    """
    key = public_key(key_file)
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder} is not signed ({SIGNATURE_FILE}): sign it with `d2unlearn calibrate --sign-key`")
    signed = _signed_files(path, key, key_file)
    there = file_digests(folder)
    changed = sorted(name for name in signed.keys() & there.keys() if signed[name] != there[name])
    for names, what in (
        (changed, "changed since it was signed"),
        (sorted(there.keys() - signed.keys()), "was not there when it was signed"),
        (sorted(signed.keys() - there.keys()), "is missing, and was signed"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ArtifactError(f"{folder / names[0]}{more} {what}; nothing was loaded")


def remove_stale_signature(folder: Path) -> bool:
    """Remove a signature that no longer fits what was written to the folder; whether there was one."""
    path = folder / SIGNATURE_FILE
    found = path.is_file()
    path.unlink(missing_ok=True)
    return found


def statement(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The in-toto statement of files (names to sha256 in hexadecimal). `name`: the folder's, which proves nothing.

    The subject's digest is the sha256 of all digests in the order of the names.
    """
    names = sorted(files)
    root = sha256(b"".join(bytes.fromhex(files[each]) for each in names)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": True, "ignore_paths": [SIGNATURE_FILE]}
    resources = [{"name": each, "algorithm": "sha256", "digest": files[each]} for each in names]
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE,
        "predicate": {"serialization": serialization, "resources": resources},
    }


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of each file below the folder but the signature, by its name in it (with `/`)."""
    with said_if_long(f"hashing the files of {folder}"):
        return _digests(folder)


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        if links:
            raise ArtifactError(
                f"{Path(place) / links[0]} is a link to a folder, which no signature covers: put the files there"
            )
        for path in (Path(place) / name for name in names):
            found[path.relative_to(folder).as_posix()] = hash_file(path)
    found.pop(SIGNATURE_FILE, None)
    return found


def pre_authentication(payload: bytes) -> bytes:
    """What DSSE signs of a payload: its type and length with it."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def private_key(file: str | Path) -> Ed25519PrivateKey:
    """The Ed25519 private key in a PEM file. Raises `ConfigError` for anything else, or where `cryptography` is missing."""
    _check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_bytes_of(file, "--sign-key"), password=None)
    except (TypeError, ValueError):
        raise ConfigError([f"--sign-key {file} is no private key without a password: {MAKE_KEYS}"]) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError([f"--sign-key {file} is a key of another kind than Ed25519: {MAKE_KEYS}"])
    return key


def public_key(file: str | Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file. Raises `ConfigError` for anything else, or where `cryptography` is missing."""
    _check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_bytes_of(file, "--trust-key"))
    except ValueError:
        raise ConfigError([f"--trust-key {file} is no public key: {MAKE_KEYS}"]) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError([f"--trust-key {file} is a key of another kind than Ed25519: {MAKE_KEYS}"])
    return key


def _signed_files(path: Path, key: Ed25519PublicKey, key_file: str | Path) -> dict[str, str]:
    """Names and digests of a signature file, once the key has vouched for them."""
    from cryptography.exceptions import InvalidSignature

    try:
        envelope = read_json(path)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
        if envelope["payloadType"] != PAYLOAD:
            raise ValueError(f"its payload is {envelope['payloadType']!r}")
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is no signature of a model ({error}); sign again") from None
    for signature in signatures:
        try:
            key.verify(signature, pre_authentication(payload))
        except InvalidSignature:
            continue
        return _files_of(path, payload)
    raise ArtifactError(f"{path} is not by the key in {key_file}, or was changed; nothing was loaded")


def _files_of(path: Path, payload: bytes) -> dict[str, str]:
    """What a payload lists. Raises `ArtifactError` for another kind of statement, though its signature is good."""
    try:
        told = json.loads(payload)
        files = {str(each["name"]): str(each["digest"]) for each in told["predicate"]["resources"]}
        again = statement(told["subject"][0]["name"], files)
        if (told["_type"], told["predicateType"], told["subject"]) != (STATEMENT, PREDICATE, again["subject"]):
            raise ValueError("it is another statement than that of a model's files")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} does not list the files of a model ({error}); sign again") from None
    return files


def _check_installed() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(["signatures need `cryptography`: pip install 'd2unlearn[sign]'"]) from None


def _bytes_of(file: str | Path, flag: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError([f"{flag} {file} cannot be read: {error.strerror or error}"]) from None


def _hint(key: Ed25519PublicKey) -> str:
    """The start of the key's own hash, to tell keys apart."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]
