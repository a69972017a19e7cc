"""Who may do what on a server: keys, roles, rates, tokens of a provider and their forgeries, https; no address without a right."""

from __future__ import annotations

import base64
import http.client
import json
import random
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import UsageError
from modelyard.store import keys as keys_file
from modelyard.store.keys import ROLES
from modelyard.verbs.serve import OidcConfig, Server, access
from modelyard.verbs.serve.access import RIGHTS, Access, Caller, Keys
from modelyard.verbs.serve.app import Service
from modelyard.verbs.serve.body import Refused


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models."""
    import contextlib

    folder = tmp_path_factory.mktemp("access")
    x = np.random.default_rng(0).uniform(-100, 100, 200)
    found = {}
    with contextlib.chdir(folder):
        for name, slope in (("one", 1), ("two", 2)):
            frame = pl.DataFrame({"x": x, "y": slope * x})
            trained = modelyard.train(data=frame, target="y", model={"name": "linear", "numbers": "scaled"}, name=name, quiet=True)
            found[name] = str(folder / trained.model)
    return found


def ask(server: Server, path: str, key: str | None = None, method: str = "GET", body: Any = None) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read()
        return response.status, json.loads(raw) if raw[:1] == b"{" else raw, response.headers
    finally:
        connection.close()


def predict(server: Server, key: str | None, name: str = "one") -> int:
    return ask(server, f"/v1/models/{name}:predict", key, "POST", {"instances": [{"x": 1}]})[0]


# --- routes and roles ------------------------------------------------------------------------------------------------


def test_every_address_has_a_right_and_the_table_is_what_it_says(folders: dict[str, str], tmp_path: Path) -> None:
    """Route × role over HTTP: every route of the application with every role, with a role for another model, and without."""
    path = tmp_path / "keys.json"
    keys = {role: keys_file.create(path, role, {"one": role})[1] for role in ROLES}
    keys |= {f"{role} of all": keys_file.create(path, role, {"*": role})[1] for role in ROLES} | {"other": keys_file.create(path, "x", {"two": "admin"})[1]}
    labels: dict[str, str] = {}
    original = Service._route

    def spy(self: Service, address: str, label: str, *more: Any, **named: Any) -> Any:
        labels[address] = label
        return original(self, address, label, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "_route", spy)
        with modelyard.serve(folders["one"], name="one", keys=str(path)) as server:
            posts = {"predict", "infer", "chat", "completions", "embeddings"}
            assert set(labels.values()) == set(RIGHTS), "a route without a right, or a right without a route"
            version = server.model.version
            for address, label in [*labels.items(), ("/v1/models/one:predict", "predict")]:
                real = address.replace("{name:str}", "one").replace("{version:str}", version).replace("{file:str}", "page.js")
                for who, key in [*keys.items(), ("nobody", None)]:
                    status = ask(server, real, key, "POST" if label in posts else "GET", {} if label in posts else None)[0]
                    right, role, every = RIGHTS[label], who.split()[0], who.endswith("of all")
                    of_any = label in ("models", "server")  # what writes answers by the model of the body, which is "one" where none is named
                    may = right is None or (role in ROLES and right in ROLES[role] and (every or label not in access.ALL))
                    may = may or (who == "other" and of_any and right in ROLES["admin"])
                    expected = "let in" if may else "401" if who == "nobody" else "403"
                    found = str(status) if status in (401, 403) else "let in"
                    assert found == expected, f"{who} at {real} ({label}): {status}, expected {expected}"


def test_a_label_that_is_not_listed_is_closed_to_all() -> None:
    with pytest.raises(Refused, match="nobody") as refused:
        Access().admit(b"", "new", "one")
    assert refused.value.status == 403


def test_models_are_seen_and_asked_by_those_who_may(folders: dict[str, str], tmp_path: Path) -> None:
    path, log = tmp_path / "keys.json", tmp_path / "log.jsonl"
    one, both = keys_file.create(path, "ann", {"one": "caller"})[1], keys_file.create(path, "bob", {"*": ["reader", "caller"]})[1]
    with modelyard.serve(models=folders, keys=str(path), log=str(log)) as server:
        assert [predict(server, one), predict(server, one, "two"), predict(server, both, "two"), predict(server, None)] == [200, 403, 200, 401]
        assert [m["id"] for m in ask(server, "/v1/models", one)[1]["data"]] == ["one"]
        assert len(ask(server, "/v1/models", both)[1]["data"]) == 2
        assert ask(server, "/v1/completions", one, "POST", {"model": "two", "prompt": "x"})[0] == 403
        assert ask(server, "/v1/completions", one, "POST", {"model": "one", "prompt": "x"})[0] == 400  # it may, but the model does not write
        assert ask(server, "/metrics", one)[0] == 403
    said = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(s["caller"], s["version"]) for s in said] == [("ann", said[0]["version"]), ("bob", said[1]["version"])]
    assert one[19:] not in log.read_text(encoding="utf-8")


def test_a_shadow_is_asked_only_what_was_let_in(folders: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = keys_file.create(path, "ann", {"a": "caller"}, rate=5.0)[1]
    with modelyard.serve(models={"a": {"champion": folders["one"], "shadow": folders["two"]}}, keys=str(path)) as server:
        found = [predict(server, k, "a") for k in [None, "wrong", *[key] * 5]]
        shadow = server.fleet.endpoints["a"].shadow
        assert shadow is not None
        time.sleep(0.2)
        assert found == [401, 401, *[200] * 5] and shadow.service.telemetry.rows == 5  # and it takes nothing from the caller's rate


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_live_as_long_as_the_file_says(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "STALE", 0.0)
    path = tmp_path / "keys.json"
    (number, first), (_, soon) = keys_file.create(path, "a", {"*": "caller"}), keys_file.create(path, "b", {"*": "caller"}, expires=time.time() + 0.6)
    assert path.stat().st_mode & 0o077 == 0 and first not in path.read_text(encoding="utf-8")
    with modelyard.serve(folders["one"], name="one", keys=str(path)) as server:
        forged = first[:-1] + ("B" if first[-1] == "A" else "A")
        assert [predict(server, k) for k in (first, soon, forged, first.upper(), f"{first} ", "my_", None)] == [200, 200, 401, 401, 200, 401, 401]
        keys_file.write(path, [e for e in keys_file.entries_of(path) if e["id"] != number])
        time.sleep(0.7)
        assert [predict(server, first), predict(server, soon)] == [401, 401]
        new = keys_file.create(path, "c", {"*": "caller"})[1]
        assert predict(server, new) == 200
        path.write_text("{", encoding="utf-8")
        assert predict(server, new) == 401  # a broken file lets nobody in
        path.unlink()
        assert predict(server, new) == 401


def test_mistakes_in_a_file_of_keys_are_all_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"id": "x", "name": "", "sha256": "z", "roles": {"*": "boss"}, "rate": -1}, 3]}), encoding="utf-8")
    with pytest.raises(UsageError) as found:
        Keys(path)
    assert len(found.value.details) == 6
    with pytest.raises(UsageError, match="modelyard keys create"):
        Keys(tmp_path / "none.json")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from modelyard import cli

    monkeypatch.chdir(tmp_path)

    def told(*words: str) -> Any:
        code = cli.main(["keys", *words, "--json"])
        return code, json.loads(capfd.readouterr().out)

    _, made = told("create", "name=shop", "models=a,b", "rate=50", "expires=90d")
    _, listed = told()
    assert [k["roles"] for k in listed["keys"]] == [{"a": "caller", "b": "caller"}] and "sha256" not in listed["keys"][0]
    assert Keys(tmp_path / "keys.json").find(*made["key"][3:].split("_", 1)).name == "shop"  # type: ignore[union-attr]
    assert told("revoke", made["id"])[1]["keys"] == []
    code, wrong = told("create", "role=boss", "rate=-1", "colour=red")
    assert code == 2 and len(wrong["error"]["details"]) == 4
    assert told("revoke", "none")[0] == 2


def test_rates_are_kept_for_each_caller() -> None:
    door = Access(rate=2.0)
    door.known.clear()
    slow, quick = Caller("slow", {"*": ("caller",)}, 1.0), Caller("quick", {"*": ("caller",)}, 1000.0)

    def passed(caller: Caller, times: int) -> int:
        count = 0
        for _ in range(times):
            try:
                door._slow_down(caller)
                count += 1
            except Refused as refused:
                assert refused.status == 429 and int(refused.headers["Retry-After"]) >= 1
        return count

    assert passed(slow, 10) == 1 and passed(quick, 500) == 500 and passed(Caller("default", {}), 10) == 2
    bucket = access.Bucket(10.0, 0.0, 100.0)
    waits = [bucket.take(100 + i / 100) for i in range(1, 1001)]
    assert sum(w == 0 for w in waits) == 100  # ten seconds at ten a second


def test_a_plain_server_needs_no_key_on_this_machine_and_one_beyond(folders: dict[str, str], tmp_path: Path) -> None:
    with modelyard.serve(folders["one"], name="one") as server:
        assert predict(server, None) == 200
    with pytest.raises(UsageError, match="say who they are"):
        modelyard.serve(folders["one"], host="0.0.0.0")
    keys_file.create(tmp_path / "keys.json", "a", {"*": "caller"})
    with modelyard.serve(folders["one"], name="one", host="0.0.0.0", keys=str(tmp_path / "keys.json")) as server:
        assert predict(server, None) == 401


# --- tokens of a provider ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Keys of three kinds, their public halves in a file, and a door that takes their tokens."""
    jwt = pytest.importorskip("jwt", reason="tokens need the extra 'access'")
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    from modelyard.verbs.serve.oidc import Provider

    private = {
        "r": rsa.generate_private_key(65537, 2048), "e": ec.generate_private_key(ec.SECP256R1()), "d": ed25519.Ed25519PrivateKey.generate(),
        "other": rsa.generate_private_key(65537, 2048),
    }  # fmt: skip
    makers = {"r": jwt.algorithms.RSAAlgorithm, "e": jwt.algorithms.ECAlgorithm, "d": jwt.algorithms.OKPAlgorithm}
    public = [json.loads(m.to_jwk(private[k].public_key())) | {"kid": k, "use": "sig"} for k, m in makers.items()]
    public.append(public[0] | {"kid": "enc", "use": "enc"})
    path = tmp_path_factory.mktemp("oidc") / "jwks.json"
    path.write_text(json.dumps({"keys": public}), encoding="utf-8")
    roles = {"ml": {"one": "caller"}, "ops": {"*": ["watcher", "reader"]}}
    config = OidcConfig(issuer="https://id.example.org", audience="modelyard", jwks=str(path), roles=roles, leeway=0.0)
    door = Access(provider=Provider(config))
    yield {"jwt": jwt, "private": private, "public": public, "path": path, "config": config, "door": door}


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    found = {"iss": "https://id.example.org", "aud": "modelyard", "sub": "ann", "exp": now + 300, "iat": now, "roles": ["ml"]}
    return {k: v for k, v in (found | changed).items() if v is not None}


def admitted(door: Access, token: str, label: str = "predict", model: str = "one") -> str | int:
    try:
        return door.admit(f"Bearer {token}".encode("latin-1", "replace"), label, model).name
    except Refused as refused:
        return refused.status


def test_tokens_of_the_provider_are_taken(provider: dict[str, Any]) -> None:
    jwt, private, door = provider["jwt"], provider["private"], provider["door"]
    for kid, algorithm in (("r", "RS256"), ("e", "ES256"), ("d", "EdDSA")):
        token = jwt.encode(claims(), private[kid], algorithm, headers={"kid": kid})
        assert admitted(door, token) == "ann" and admitted(door, token) == "ann"  # the second time remembered
        assert admitted(door, token, model="two") == 403 and admitted(door, token, "metrics") == 403
    both = jwt.encode(claims(roles="ml ops"), private["r"], "RS256", headers={"kid": "r"})
    assert [admitted(door, both, label) for label in ("predict", "metrics", "models")] == ["ann"] * 3
    short = jwt.encode(claims(exp=time.time() + 1), private["r"], "RS256", headers={"kid": "r"})
    assert admitted(door, short) == "ann"
    time.sleep(1.1)
    assert admitted(door, short) == 401  # what is remembered ends with the token


def b64(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode("utf-8")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def forgeries(provider: dict[str, Any]) -> dict[str, str]:
    """Tokens that must not be taken, by what is wrong with them."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives import serialization

    jwt, private, public = provider["jwt"], provider["private"], provider["public"]
    sign = lambda body=None, key="r", algorithm="RS256", **header: jwt.encode(  # noqa: E731
        claims() if body is None else body, private[key], algorithm, headers={"kid": "r"} | header
    )
    good = sign()
    head, body, signature = good.split(".")
    pem = private["r"].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = private["r"].public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def symmetric(secret: bytes, algorithm: str = "HS256") -> str:
        start = f"{b64({'alg': algorithm, 'typ': 'JWT', 'kid': 'r'})}.{body}"
        return f"{start}.{b64(hmac.new(secret, start.encode('ascii'), getattr(hashlib, 'sha' + algorithm[2:])).digest())}"

    header = lambda **h: f"{b64({'typ': 'JWT', 'kid': 'r', 'alg': 'RS256'} | h)}.{body}.{signature}"  # noqa: E731
    own = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private["other"].public_key()))
    found = {f"alg {a}": f"{b64({'alg': a, 'typ': 'JWT', 'kid': 'r'})}.{body}." for a in ("none", "None", "NONE", "nOnE", "")}
    found |= {f"alg {a} signed": f"{b64({'alg': a, 'kid': 'r'})}.{body}.{signature}" for a in ("none", "RS512", "PS256", "ES256", "EdDSA", "HS256")}
    found |= {"HS256 by the public key's PEM": symmetric(pem), "HS512 by it": symmetric(pem, "HS512"), "HS256 by its DER": symmetric(der)}
    found |= {"HS256 by the JWK": symmetric(json.dumps(public[0]).encode("utf-8")), "HS256 by nothing": symmetric(b"")}
    found |= {"another's key": sign(key="other"), "its own key": sign(key="other", jwk=own), "jku": sign(key="other", jku="https://evil.example/jwks")}
    found |= {"x5u": sign(key="other", x5u="https://evil.example/c"), "x5c": sign(key="other", x5c=[b64(b"x")])}
    found |= {"kid of another kind": sign(kid="e"), "kid unknown": sign(kid="zz"), "kid of encryption": sign(kid="enc")}
    found |= {"kid a path": sign(kid="../../dev/null")}
    found |= {"no kid": jwt.encode(claims(), private["r"], "RS256"), "kid a number": header(kid=1), "kid SQL": sign(kid="r' OR '1'='1")}
    found |= {"crit": sign(crit=["exp"]), "b64 false": header(b64=False)}
    found |= {"expired": sign(claims(exp=int(time.time()) - 5)), "no exp": sign(claims(exp=None)), "not yet": sign(claims(nbf=int(time.time()) + 60))}
    found |= {"issuer": sign(claims(iss="https://evil.example")), "no issuer": sign(claims(iss=None)), "issuer slash": sign(claims(iss="https://id.example.org/"))}
    found |= {"audience": sign(claims(aud="other")), "no audience": sign(claims(aud=None)), "audiences": sign(claims(aud=["a", "b"]))}
    found |= {"no subject": sign(claims(sub=None)), "no role": sign(claims(roles=[])), "strange role": sign(claims(roles=["root", "*"]))}
    found |= {"roles a map": sign(claims(roles={"ml": 1}))}
    found |= {"body changed": f"{head}.{b64(claims(roles=['ops']))}.{signature}", "no signature": f"{head}.{body}."}
    found |= {"cut": good[:-8], "two parts": f"{head}.{body}"}
    found |= {"ES256 of zeros": f"{b64({'alg': 'ES256', 'kid': 'e'})}.{body}.{b64(bytes(64))}", "nested": f"{good}.{good}"}
    return found


def test_forged_tokens_are_refused(provider: dict[str, Any]) -> None:
    found = forgeries(provider)
    assert len(found) >= 45
    taken = {what: name for what, token in found.items() if (name := admitted(provider["door"], token)) != 401}
    assert not taken


def test_mutants_of_a_token_are_refused(provider: dict[str, Any]) -> None:
    """10,000 tokens with one or a few changed, missing, doubled or swapped characters; only what decodes to the same bytes may pass."""
    jwt, private = provider["jwt"], provider["private"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    draw = random.Random(0)
    tokens = [jwt.encode(claims(), private[k], a, headers={"kid": k}) for k, a in (("r", "RS256"), ("e", "ES256"), ("d", "EdDSA"))]

    def decoded(token: str) -> list[bytes]:
        return [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split(".")]

    door = Access(provider=provider["door"].provider)
    for i in range(10_000):
        token = tokens[i % 3]
        text = list(token)
        for _ in range(draw.choice((1, 1, 2, 5))):
            at, how = draw.randrange(len(text)), draw.randrange(4)
            if how == 0:
                text[at] = draw.choice(letters)
            elif how == 1:
                del text[at]
            elif how == 2:
                text.insert(at, draw.choice(letters + "."))
            else:
                other = draw.randrange(len(text))
                text[at], text[other] = text[other], text[at]
        mutant = "".join(text)
        if admitted(door, mutant) != 401:
            assert mutant.count(".") == 2 and decoded(mutant) == decoded(token), mutant


def test_keys_of_a_provider_rotate(provider: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from modelyard.verbs.serve import oidc

    jwt, private = provider["jwt"], provider["private"]
    path = tmp_path / "jwks.json"
    old = provider["public"][0]
    path.write_text(json.dumps({"keys": [old]}), encoding="utf-8")
    door = Access(provider=oidc.Provider(dataclasses.replace(provider["config"], jwks=str(path))))
    new = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private["other"].public_key())) | {"kid": "new"}
    token = jwt.encode(claims(), private["other"], "RS256", headers={"kid": "new"})
    assert admitted(door, token) == 401  # looked for just now: the provider is not asked again for every unknown key
    path.write_text(json.dumps({"keys": [new]}), encoding="utf-8")
    monkeypatch.setattr(oidc, "AGAIN", 0.0)
    assert admitted(door, token) == 503
    until = time.monotonic() + 5
    while admitted(door, token) == 503 and time.monotonic() < until:
        time.sleep(0.01)
    assert admitted(door, token) == "ann"
    assert admitted(door, jwt.encode(claims(), private["r"], "RS256", headers={"kid": "r"})) in (401, 503)  # the old key is gone
    with pytest.raises(UsageError, match="https"):
        oidc.Provider(dataclasses.replace(provider["config"], jwks="http://id.example.org/keys"))
    with pytest.raises(UsageError, match=r"serve\.oidc"):
        oidc.Provider(dataclasses.replace(provider["config"], roles={"a": {"*": "boss"}}))


# --- https -------------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> None:
    """A self-signed certificate for 127.0.0.1 in cert.pem and key.pem."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
    made = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


def test_https_with_a_certificate_that_is_renewed(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="a certificate is made with the extra 'access'")
    from modelyard.verbs import serve as module

    monkeypatch.setattr(module, "RENEWED", 0.05)
    certificate(tmp_path, "first")
    tls = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}

    def connect(server: Server) -> bytes:
        trust = ssl.create_default_context(cafile=tls["cert"])
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=trust, timeout=10)
        connection.request("POST", "/v1/models/one:predict", json.dumps({"instances": [{"x": 1}]}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200 and "predictions" in json.loads(response.read())
        raw = connection.sock.getpeercert(binary_form=True)
        connection.close()
        return raw  # type: ignore[no-any-return]

    with modelyard.serve(folders["one"], name="one", tls=tls) as server:
        assert server.url.startswith("https://")
        first = connect(server)
        certificate(tmp_path, "second")
        time.sleep(0.4)
        assert connect(server) != first
        (tmp_path / "cert.pem").write_text("half", encoding="utf-8")
        time.sleep(0.2)
    with pytest.raises(UsageError, match=r"serve\.tls"):
        modelyard.serve(folders["one"], tls=tls)
