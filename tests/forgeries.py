"""Every way in which another issuer's token can be wrong, and by which check it is refused (`submit_api.oidc.verifying`).

Each forger gets the issuer whose token it bends, and the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tests.issuer import AUDIENCE, Issuer, encoded, private_key, public_jwk, signed

Forger: TypeAlias = Callable[[Issuer, int], str]


def unsigned(issuer: Issuer, now_us: int) -> str:
    head = encoded(json.dumps({"alg": "none", "kid": "first", "typ": "JWT"}).encode())
    return f"{head}.{encoded(json.dumps(issuer.claims(now_us)).encode())}."


def none_with_a_signature(issuer: Issuer, now_us: int) -> str:
    return unsigned(issuer, now_us) + issuer.token(now_us).rpartition(".")[2]


def with_the_public_key_as_secret(issuer: Issuer, now_us: int) -> str:
    """HS256, and the secret is what everybody can fetch."""
    text = json.dumps(issuer.published[0]).encode()
    return signed({"alg": "HS256", "kid": "first"}, issuer.claims(now_us), "HS256", text)


def by_an_embedded_key(issuer: Issuer, now_us: int) -> str:
    mallory = private_key("RSA", 666)
    header = {"alg": "RS256", "kid": "first", "jwk": public_jwk("RS256", mallory, "first")}
    return signed(header, issuer.claims(now_us), "RS256", mallory)


def by_a_key_elsewhere(name: str) -> Forger:
    def make(issuer: Issuer, now_us: int) -> str:
        header = {"alg": "RS256", "kid": "first", name: "https://mallory.example.com/keys"}
        return signed(header, issuer.claims(now_us), "RS256", private_key("RSA", 666))

    return make


def by_another_key_of_the_id(issuer: Issuer, now_us: int) -> str:
    return signed({"alg": "RS256", "kid": "first"}, issuer.claims(now_us), "RS256", private_key("RSA", 666))


def another_payload(issuer: Issuer, now_us: int) -> str:
    head, _, signature = issuer.token(now_us).split(".")
    return f"{head}.{encoded(json.dumps(issuer.claims(now_us, sub='root')).encode())}.{signature}"


def twice(issuer: Issuer, now_us: int) -> str:
    payload = json.dumps(issuer.claims(now_us)).replace('"sub"', '"sub": "root", "sub"').encode()
    return signed({"alg": "RS256", "kid": "first"}, payload, "RS256", issuer.keys["first"][1])


def raw(payload: bytes) -> Forger:
    return lambda issuer, now_us: signed({"alg": "RS256", "kid": "first"}, payload, "RS256", issuer.keys["first"][1])


def trailing_bits(issuer: Issuer, now_us: int) -> str:
    """The last character of a signature of 256 bytes holds four bits that mean nothing."""
    token = issuer.token(now_us)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


@dataclass(frozen=True)
class After:
    """So many seconds after now."""

    seconds: int


def claim(**changes: Any) -> Forger:
    def make(issuer: Issuer, now_us: int) -> str:
        now = now_us // 1_000_000
        told = {name: now + value.seconds if isinstance(value, After) else value for name, value in changes.items()}
        return issuer.token(now_us, **told)

    return make


def by_url(change: Callable[[str], Any]) -> Forger:
    return lambda issuer, now_us: issuer.token(now_us, iss=change(issuer.url))


def infinite(issuer: Issuer, now_us: int) -> str:
    payload = json.dumps(issuer.claims(now_us, exp=...)).encode()[:-1] + b', "exp": 1e999}'
    return raw(payload)(issuer, now_us)


def header(**changes: Any) -> Forger:
    return lambda issuer, now_us: issuer.token(now_us, header=changes)


# What is wrong -> who makes it, and what the refusal says.
FORGERIES: dict[str, tuple[Forger, str]] = {
    # 1 and 2: how it is written
    "oversize": (claim(more="x" * 5560), "it is longer than 8000 characters"),  # a header has 8190 at most
    "two parts": (lambda issuer, now_us: issuer.token(now_us).rpartition(".")[0], "three parts"),
    "five parts, as an encrypted one": (lambda issuer, now_us: issuer.token(now_us) + ".a.b", "three parts"),
    "empty signature": (
        lambda issuer, now_us: issuer.token(now_us).rpartition(".")[0] + ".",
        "its signature is not base64url",
    ),
    "padded": (lambda issuer, now_us: issuer.token(now_us) + "==", "its signature is not base64url"),
    "trailing bits": (trailing_bits, "its signature is not base64url"),
    "a space in it": (
        lambda issuer, now_us: issuer.token(now_us).replace(".", ". ", 1),
        "its payload is not base64url",
    ),
    "a claim twice": (twice, "its payload is not JSON, or says something twice"),
    "no JSON": (raw(b"sub=ada"), "its payload is not JSON"),
    "not UTF-8": (raw(b'{"sub": "\xff"}'), "its payload is not JSON"),
    "NaN": (raw(b'{"exp": NaN}'), "its payload is not JSON"),
    "a list": (raw(b"[]"), "its payload is not an object"),
    "nested without end": (raw(b"[" * 5000), "its payload is not JSON"),
    "a number of thousands of digits": (raw(b'{"exp": ' + b"9" * 4800 + b"}"), "its payload is not JSON"),
    # 3: what its header asks for
    "crit": (header(crit=["exp"]), "crit, b64, cty, zip or enc"),
    "crit empty": (header(crit=[]), "crit, b64, cty, zip or enc"),
    "b64": (header(crit=["b64"], b64=False), "crit, b64, cty, zip or enc"),
    "nested": (header(cty="JWT"), "crit, b64, cty, zip or enc"),
    "logout token": (header(typ="logout+jwt"), "a token of another kind"),
    "typ is no text": (header(typ=["JWT"]), "a token of another kind"),
    # 4: whose it is
    "another issuer": (claim(iss="https://mallory.example.com"), "its issuer is none that is trusted here"),
    "issuer with a slash": (by_url(lambda url: url + "/"), "its issuer is none that is trusted here"),
    "issuer in capitals": (by_url(str.upper), "its issuer is none that is trusted here"),
    "issuer is a list": (by_url(lambda url: [url]), "its issuer is none that is trusted here"),
    "no issuer": (claim(iss=...), "its issuer is none that is trusted here"),
    # 5: how it is signed
    "none": (lambda issuer, now_us: unsigned(issuer, now_us) + "AA", "may sign with RS256, ES256 only"),
    "none, signed": (none_with_a_signature, "may sign with RS256, ES256 only"),
    "None": (header(alg="None"), "may sign with RS256, ES256 only"),
    "no alg": (header(alg=...), "may sign with RS256, ES256 only"),
    "alg is a list": (header(alg=["RS256"]), "may sign with RS256, ES256 only"),
    "HS256 with the public key": (with_the_public_key_as_secret, "may sign with RS256, ES256 only"),
    "an algorithm that is not allowed": (header(alg="RS512"), "may sign with RS256, ES256 only"),
    # 6, 7, 8: by which key
    "no kid": (header(kid=...), "does not name a key"),
    "empty kid": (header(kid=""), "does not name a key"),
    "kid is a number": (header(kid=1), "does not name a key"),
    "endless kid": (header(kid="x" * 201), "does not name a key"),
    "unknown kid": (header(kid="other"), "no such key"),
    "kid as a path": (header(kid="../../dev/null"), "no such key"),
    "a key of another type": (header(alg="ES256"), "the key that it names is not for ES256"),
    # 9: the signature
    "another payload": (another_payload, "its signature does not hold"),
    "another key": (by_another_key_of_the_id, "its signature does not hold"),
    "jwk": (by_an_embedded_key, "its signature does not hold"),
    "jku": (by_a_key_elsewhere("jku"), "its signature does not hold"),
    "x5u": (by_a_key_elsewhere("x5u"), "its signature does not hold"),
    # 10: for whom
    "another audience": (claim(aud="https://pypi.org"), "for nobody else"),
    "no audience": (claim(aud=...), "for nobody else"),
    "audience empty": (claim(aud=[]), "for nobody else"),
    "for others too": (claim(aud=[AUDIENCE, "https://mallory.example.com"]), "for nobody else"),
    "a part of the audience": (claim(aud=AUDIENCE[:-1]), "for nobody else"),
    # 11: when
    "expired": (claim(exp=After(-30)), "it has expired"),
    "no exp": (claim(exp=...), r"it lacks a number of seconds \(exp\)"),
    "exp is text": (claim(exp="2000000000"), r"it lacks a number of seconds \(exp\)"),
    "exp is true": (claim(exp=True), r"it lacks a number of seconds \(exp\)"),
    "exp is endless": (claim(exp=2**63), r"it lacks a number of seconds \(exp\)"),
    "exp is infinite": (infinite, r"it lacks a number of seconds \(exp\)"),
    "not yet": (claim(nbf=After(40)), "its time has not come yet"),
    "nbf is text": (claim(nbf="0"), r"it lacks a number of seconds \(nbf\)"),
    "issued tomorrow": (claim(iat=After(40)), "its time has not come yet"),
    "no iat": (claim(iat=...), r"it lacks a number of seconds \(iat\)"),
    "for years": (claim(exp=After(86_401)), "it was made for longer than 86400 seconds"),
    # 12: about whom
    "no subject": (claim(sub=...), "not whom it is about"),
    "empty subject": (claim(sub=""), "not whom it is about"),
    "subject is a number": (claim(sub=1), "not whom it is about"),
    "endless subject": (claim(sub="a" * 256), "not whom it is about"),
}
