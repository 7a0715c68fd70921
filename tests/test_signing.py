"""Signatures: exactly the files that the holder of the key signed, listed as OpenSSF Model Signing lists them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from d2unlearn import commands
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ArtifactError, ConfigError
from d2unlearn.signing import SIGNATURE_FILE, check_signature, pre_authentication, remove_stale_signature, sign, statement

FILES = {"config.json": "{}", "model.safetensors": "weights", "custom_generate/generate.py": "pass"}


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a private and its public key."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    return tmp_path / "key.pem", tmp_path / "key.pub"


@pytest.fixture
def folder(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    made = tmp_path / "artifact"
    for name, text in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    sign(made, keys[0])
    return made


def test_a_signed_folder_passes_wherever_it_lies(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    check_signature(folder, keys[1])
    check_signature(folder.rename(tmp_path / "elsewhere"), keys[1])


def test_files_are_listed_as_openssf_model_signing_lists_them(folder: Path) -> None:
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    told = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    digests = {name: sha256(text.encode()) for name, text in FILES.items()}
    names = ["config.json", "custom_generate/generate.py", "model.safetensors"]
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["predicateType"] == "https://model_signing/signature/v1.0"
    assert told["predicate"]["resources"] == [
        {"name": name, "algorithm": "sha256", "digest": digests[name].hexdigest()} for name in names
    ]
    root = sha256(b"".join(digests[name].digest() for name in names)).hexdigest()
    assert told["subject"] == [{"name": "artifact", "digest": {"sha256": root}}]
    assert told["predicate"]["serialization"]["method"] == "files"
    assert bundle["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
    assert pre_authentication(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The signed statement changed, under the old signature."""
    path = folder / SIGNATURE_FILE
    bundle = json.loads(path.read_text())
    told = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(told)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(told, sort_keys=True).encode()).decode()
    path.write_text(json.dumps(bundle))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda folder: (folder / "config.json").write_text("[]"), "config.json changed since it was signed"),
    "added": (lambda folder: (folder / "custom_generate" / "more.py").write_text(""), "more.py was not there"),
    "missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing, and was signed"),
    "unsigned": (lambda folder: (folder / SIGNATURE_FILE).unlink(), "is not signed"),
    "cut short": (lambda folder: (folder / SIGNATURE_FILE).write_text('{"dsse'), "is no signature of a model"),
    "empty": (lambda folder: (folder / SIGNATURE_FILE).write_text("{}"), "is no signature of a model"),
    "another list": (
        lambda folder: rewritten(folder, lambda told: told["predicate"]["resources"].pop()),
        "is not by the key in .*, or was changed",
    ),
    "a linked folder": (lambda folder: (folder / "adapter").symlink_to(folder / "custom_generate"), "is a link to a folder"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_not_as_it_was_signed_is_refused(folder: Path, keys: tuple[Path, Path], change: str) -> None:
    make, said = CHANGES[change]
    make(folder)
    with pytest.raises(ArtifactError, match=said):
        check_signature(folder, keys[1])


def test_another_key_vouches_for_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pub").write_bytes(public_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(ArtifactError, match=r"is not by the key in .*other\.pub"):
        check_signature(folder, tmp_path / "other.pub")


def test_a_good_signature_of_something_else_is_no_list_of_files(folder: Path, keys: tuple[Path, Path]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    digest = sha256(b"").hexdigest()
    for told in (
        {**statement("a", {"f": digest}), "predicateType": "https://slsa.dev/provenance/v1"},
        {**statement("a", {"f": digest}), "subject": [{"name": "a", "digest": {"sha256": digest}}]},
        {"predicate": 3},
        [],
    ):
        payload = json.dumps(told).encode()
        signature = base64.b64encode(key.sign(pre_authentication(payload))).decode()
        envelope = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": signature}],
        }
        (folder / SIGNATURE_FILE).write_text(json.dumps({"dsseEnvelope": envelope}))
        with pytest.raises(ArtifactError, match="does not list the files of a model"):
            check_signature(folder, keys[1])


def test_a_signature_goes_when_the_folder_is_written_to(folder: Path) -> None:
    assert remove_stale_signature(folder)
    assert not (folder / SIGNATURE_FILE).exists()
    assert not remove_stale_signature(folder)


def test_what_is_no_key_is_one_sentence(folder: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    elliptic = generate_private_key(SECP256R1())
    locked = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    for name, content in (
        ("text", b"mine"),
        ("elliptic", private_pem(elliptic)),
        ("locked", locked),
        ("public", public_pem(elliptic)),
    ):
        (tmp_path / name).write_bytes(content)
    for file, said in (
        ("missing", "cannot be read: No such file"),
        ("text", "is no private key"),
        ("elliptic", "is a key of another kind than Ed25519"),
        ("locked", "is no private key without a password"),
    ):
        with pytest.raises(ConfigError, match=rf"^--sign-key .*{file} {said}"):
            sign(folder, tmp_path / file)
    for file, said in (
        ("text", "is no public key"),
        ("public", "is a key of another kind than Ed25519"),
        ("key.pem", "is no public key"),
    ):
        with pytest.raises(ConfigError, match=rf"^--trust-key .*{file} {said}"):
            check_signature(folder, tmp_path / file)


def test_unlearn_signs_what_it_made(folder: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    told: list[UnlearnSettings] = []

    def made(settings: UnlearnSettings) -> Path:
        told.append(settings)
        return folder

    monkeypatch.setattr("d2unlearn.training.unlearn.run_unlearn", made)
    settings = UnlearnSettings("model", "forget.jsonl", "retain.jsonl", str(folder), sign_key=str(private))
    assert commands.unlearn(settings) == folder
    check_signature(folder, public)
    assert told == [replace(settings, sign_key=None)]
    with pytest.raises(ConfigError, match="is no private key"):
        commands.unlearn(replace(settings, sign_key=str(public)))
    assert len(told) == 1
