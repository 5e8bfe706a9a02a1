"""Tokens of other issuers: every way in which one can be wrong, each with the check that refuses it; and who it then is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submit_api import identity
from submit_api.oidc import callers, keysets, verifying
from submit_api.oidc.keysets import Key
from submit_api.oidc.section import IssuerSection, OidcSection
from submit_api.oidc.verifying import TrustedIssuer, VerifiedToken
from submit_api.refusals import UnauthenticatedError
from tests.issuer import ALGORITHMS, AUDIENCE, KINDS, Issuer, encoded, private_key, public_jwk, signed

NOW_US = 1_800_000_000_000_000
NOW = NOW_US // 1_000_000
LIMITS = OidcSection()
URL = "https://issuer.example.com"
ALL = list(KINDS)


@dataclass
class Published:
    """Where keys come from, without the network and without a cache."""

    issuer: Issuer

    async def find(self, kid: str) -> Key:
        found = keysets.read(self.issuer.key_set())
        if kid not in found.keys:
            raise UnauthenticatedError("no such key")
        return found.keys[kid]


def section(**changes: Any) -> IssuerSection:
    fields = {"name": "corp", "issuer": URL, "audience": AUDIENCE, "sign_in": "everybody", **changes}
    return IssuerSection.model_validate(fields)


async def verify(token: str, *issuers: Issuer, **changes: Any) -> VerifiedToken:
    trusted = {
        issuer.url: TrustedIssuer(
            settings=section(issuer=issuer.url, name=f"corp{number or ''}", **changes), keys=Published(issuer)
        )
        for number, issuer in enumerate(issuers)
    }
    return await verifying.verify(token, trusted, LIMITS, now_us=NOW_US)


@pytest.mark.parametrize("algorithm", ALL)
async def test_a_good_token_is_taken(algorithm: str) -> None:
    issuer = Issuer()
    issuer.add(algorithm, "second")
    found = await verify(issuer.token(NOW_US, kid="second"), issuer, algorithms=[algorithm])
    assert (found.claims["sub"], found.expires_at, found.issuer.name) == ("ada", NOW + 300, "corp")
    assert "ada" not in repr(found)
    if algorithm != "RS256":
        with pytest.raises(UnauthenticatedError, match=r"may sign with RS256 only"):
            await verify(issuer.token(NOW_US, kid="second"), issuer)


def unsigned(issuer: Issuer) -> str:
    head = encoded(json.dumps({"alg": "none", "kid": "first", "typ": "JWT"}).encode())
    return f"{head}.{encoded(json.dumps(issuer.claims(NOW_US)).encode())}."


def none_with_a_signature(issuer: Issuer) -> str:
    return unsigned(issuer) + issuer.token(NOW_US).rpartition(".")[2]


def with_the_public_key_as_secret(issuer: Issuer) -> str:
    """HS256, and the secret is what everybody can fetch."""
    text = json.dumps(issuer.published[0]).encode()
    return signed({"alg": "HS256", "kid": "first"}, issuer.claims(NOW_US), "HS256", text)


def by_an_embedded_key(issuer: Issuer) -> str:
    mallory = private_key("RSA", 666)
    header = {"alg": "RS256", "kid": "first", "jwk": public_jwk("RS256", mallory, "first")}
    return signed(header, issuer.claims(NOW_US), "RS256", mallory)


def by_a_key_elsewhere(name: str) -> Callable[[Issuer], str]:
    def make(issuer: Issuer) -> str:
        header = {"alg": "RS256", "kid": "first", name: "https://mallory.example.com/keys"}
        return signed(header, issuer.claims(NOW_US), "RS256", private_key("RSA", 666))

    return make


def by_another_key_of_the_id(issuer: Issuer) -> str:
    return signed({"alg": "RS256", "kid": "first"}, issuer.claims(NOW_US), "RS256", private_key("RSA", 666))


def another_payload(issuer: Issuer) -> str:
    head, _, signature = issuer.token(NOW_US).split(".")
    return f"{head}.{encoded(json.dumps(issuer.claims(NOW_US, sub='root')).encode())}.{signature}"


def twice(issuer: Issuer) -> str:
    payload = json.dumps(issuer.claims(NOW_US)).replace('"sub"', '"sub": "root", "sub"').encode()
    return signed({"alg": "RS256", "kid": "first"}, payload, "RS256", issuer.keys["first"][1])


def raw(payload: bytes) -> Callable[[Issuer], str]:
    return lambda issuer: signed({"alg": "RS256", "kid": "first"}, payload, "RS256", issuer.keys["first"][1])


def trailing_bits(issuer: Issuer) -> str:
    """The last character of a signature of 256 bytes holds four bits that mean nothing."""
    token = issuer.token(NOW_US)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


def claim(**changes: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(NOW_US, **changes)


def header(**changes: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(NOW_US, header=changes)


BAD: dict[str, tuple[Callable[[Issuer], str], str]] = {
    # 1 and 2: how it is written
    "oversize": (claim(more="x" * 8192), "it is longer than 8192 characters"),
    "two parts": (lambda issuer: issuer.token(NOW_US).rpartition(".")[0], "three parts"),
    "five parts, as an encrypted one": (lambda issuer: issuer.token(NOW_US) + ".a.b", "three parts"),
    "empty signature": (lambda issuer: issuer.token(NOW_US).rpartition(".")[0] + ".", "its signature is not base64url"),
    "padded": (lambda issuer: issuer.token(NOW_US) + "==", "its signature is not base64url"),
    "trailing bits": (trailing_bits, "its signature is not base64url"),
    "a space in it": (lambda issuer: issuer.token(NOW_US).replace(".", ". ", 1), "its payload is not base64url"),
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
    "issuer with a slash": (claim(iss=URL + "/"), "its issuer is none that is trusted here"),
    "issuer in capitals": (claim(iss=URL.upper()), "its issuer is none that is trusted here"),
    "issuer is a list": (claim(iss=[URL]), "its issuer is none that is trusted here"),
    "no issuer": (claim(iss=...), "its issuer is none that is trusted here"),
    # 5: how it is signed
    "none": (lambda issuer: unsigned(issuer) + "AA", "may sign with RS256, ES256 only"),
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
    "expired": (claim(exp=NOW - 30), "it has expired"),
    "no exp": (claim(exp=...), r"it lacks a number of seconds \(exp\)"),
    "exp is text": (claim(exp=str(NOW + 60)), r"it lacks a number of seconds \(exp\)"),
    "exp is true": (claim(exp=True), r"it lacks a number of seconds \(exp\)"),
    "exp is endless": (claim(exp=2**63), r"it lacks a number of seconds \(exp\)"),
    "exp is infinite": (raw(json.dumps({"iss": URL, "aud": AUDIENCE}).encode()[:-1] + b', "exp": 1e999}'), "exp"),
    "not yet": (claim(nbf=NOW + 31), "its time has not come yet"),
    "nbf is text": (claim(nbf="0"), r"it lacks a number of seconds \(nbf\)"),
    "issued tomorrow": (claim(iat=NOW + 31), "its time has not come yet"),
    "no iat": (claim(iat=...), r"it lacks a number of seconds \(iat\)"),
    "for years": (claim(exp=NOW + 86_401), "it was made for longer than 86400 seconds"),
    # 12: about whom
    "no subject": (claim(sub=...), "not whom it is about"),
    "empty subject": (claim(sub=""), "not whom it is about"),
    "subject is a number": (claim(sub=1), "not whom it is about"),
    "endless subject": (claim(sub="a" * 256), "not whom it is about"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_refused_by_its_check(name: str) -> None:
    make, why = BAD[name]
    issuer = Issuer()
    token = make(issuer)
    with pytest.raises(UnauthenticatedError, match=why) as caught:
        await verify(token, issuer, algorithms=["RS256", "ES256"])
    for part in token.split("."):
        assert len(part) < 8 or part not in str(caught.value)


async def test_the_same_key_id_at_two_issuers() -> None:
    """Each issuer vouches for its own people only, whatever its keys are called."""
    corp, mallory = Issuer(), Issuer("https://mallory.example.com")
    mallory.keys["first"] = ("RS256", private_key("RSA", 666))
    mallory.published[0] = public_jwk("RS256", private_key("RSA", 666), "first")
    assert (await verify(corp.token(NOW_US), corp, mallory)).issuer.name == "corp"
    assert (await verify(mallory.token(NOW_US), corp, mallory)).issuer.name == "corp1"
    with pytest.raises(UnauthenticatedError, match="its signature does not hold"):
        await verify(mallory.token(NOW_US, iss=corp.url), corp, mallory)


@pytest.mark.parametrize(
    "changes",
    [{"exp": NOW - 29}, {"iat": NOW + 30}, {"nbf": NOW + 30}, {"nbf": ...}, {"aud": [AUDIENCE]}, {"exp": NOW + 0.5}],
    ids=str,
)
async def test_a_little_leeway(changes: dict[str, Any]) -> None:
    issuer = Issuer()
    assert (await verify(issuer.token(NOW_US, **changes), issuer)).claims["sub"] == "ada"


async def test_every_changed_character_is_refused() -> None:
    issuer = Issuer()
    issuer.add("EdDSA", "short")
    token = issuer.token(NOW_US, kid="short")
    for at in range(len(token)):
        for instead in "A.=e":
            changed = token[:at] + instead + token[at + 1 :]
            if changed != token:
                with pytest.raises(UnauthenticatedError):
                    await verify(changed, issuer, algorithms=["EdDSA"])


WORDS = st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "exp", "iat", "nbf", "email", "groups"]),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.text(max_size=5)),
        st.sampled_from([URL, AUDIENCE, "ada", NOW, NOW + 300, NOW - 300]),
    ),
)  # fmt: skip


@given(changes=WORDS)
async def test_whatever_is_signed_either_says_all_that_is_asked_for_or_is_refused(changes: dict[str, Any]) -> None:
    issuer = Issuer()
    issuer.add("EdDSA", "short")
    token = issuer.token(NOW_US, kid="short", **changes)
    try:
        found = await verify(token, issuer, algorithms=["EdDSA"])
    except UnauthenticatedError:
        return
    claims = found.claims
    assert claims["iss"] == URL and claims["aud"] in (AUDIENCE, [AUDIENCE]) and claims["sub"]
    assert claims["iat"] - 30 <= NOW < claims["exp"] + 30
    assert claims["exp"] - claims["iat"] <= 86_400 and claims.get("nbf", 0) <= NOW + 30


@given(text=st.text(max_size=300))
async def test_whatever_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        await verify(text, Issuer())


@given(header=st.dictionaries(st.text(), st.text()), lead=st.text(alphabet=" \t\r\n", max_size=3))
def test_no_token_of_an_issuer_looks_like_one_of_ours(header: dict[str, str], lead: str) -> None:
    text = encoded((lead + json.dumps(header)).encode())
    assert not text.startswith(identity.PREFIX)
    assert "." not in identity.create(_Zeros()).text


class _Zeros:
    def token_bytes(self, count: int) -> bytes:
        return bytes(count)


# keys


def jwk(**changes: Any) -> dict[str, Any]:
    found = {**public_jwk("RS256", private_key("RSA"), "first"), **changes}
    return {name: value for name, value in found.items() if value is not ...}


SECRET_HALF = ALGORITHMS["RS256"].to_jwk(private_key("RSA"), as_dict=True)["d"]


@pytest.mark.parametrize(
    ("published", "usable"),
    [
        ([jwk()], {"first"}),
        ([jwk(use=...)], {"first"}),
        ([jwk(key_ops=["verify"])], {"first"}),
        ([jwk(alg="RS256")], {"first"}),
        ([jwk(), jwk(kid="second")], {"first", "second"}),
        ([jwk(), jwk()], set()),
        ([jwk(), jwk(), jwk(kid="second")], {"second"}),
        ([jwk(), jwk(use="enc")], {"first"}),
        ([jwk(use="enc")], None),
        ([jwk(key_ops=["encrypt"])], None),
        ([jwk(key_ops="verify")], None),
        ([jwk(kid=...)], None),
        ([jwk(kid="")], None),
        ([jwk(kid=1)], None),
        ([jwk(alg="HS256")], None),
        ([jwk(alg="ES256")], None),
        ([jwk(d=SECRET_HALF)], None),
        ([jwk(n="AQAB")], None),
        ([jwk(n="*")], None),
        ([jwk(e=...)], None),
        ([jwk(kty="oct", k="c2VjcmV0")], None),
        ([jwk(kty="oct")], None),
        ([jwk(kty=[])], None),
        ([public_jwk("RS256", private_key("weak RSA"), "first")], None),
        (["first"], None),
        ([], None),
        ([jwk(kid=str(number)) for number in range(101)], None),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_which_published_keys_are_used(published: list[Any], usable: set[str] | None) -> None:
    data = json.dumps({"keys": published}).encode()
    if usable is None:
        with pytest.raises(keysets.FetchError):
            keysets.read(data)
    else:
        found = keysets.read(data)
        assert set(found.keys) == usable
        assert found.doubled == {"first"} - usable if len(published) > 1 else not found.doubled


@pytest.mark.parametrize("data", [b"", b"[]", b'{"keys": {}}', b"{}", b"[" * 100_000, b"\xff", b'{"keys": null}'])
def test_what_is_no_key_set(data: bytes) -> None:
    with pytest.raises(keysets.FetchError):
        keysets.read(data)


@given(st.dictionaries(st.sampled_from(["kty", "kid", "crv", "x", "y", "n", "e", "alg", "use", "key_ops", "d"]),
                       st.one_of(st.none(), st.integers(), st.text(max_size=9), st.lists(st.text()),
                                 st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "sig"]))))  # fmt: skip
def test_no_key_is_read_from_nonsense(found: dict[str, Any]) -> None:
    with pytest.raises(keysets.FetchError):
        keysets.read(json.dumps({"keys": [found]}).encode())


# who it is


def told(issuer: IssuerSection, **claims: Any) -> VerifiedToken:
    return VerifiedToken(issuer=issuer, claims={"sub": "ada", **claims}, expires_at=0)


@pytest.mark.parametrize(
    ("settings", "claims", "principal"),
    [
        ({}, {}, "corp:ada"),
        ({}, {"sub": "admin"}, "corp:admin"),
        ({"principal_claim": "upn"}, {"upn": "ada@example.com"}, "corp:ada@example.com"),
        ({"principal_claim": "email"}, {"email": "ada@example.com", "email_verified": True}, "corp:ada@example.com"),
        ({"principals": {"ada": "ada"}}, {}, "ada"),
        ({"principals": {"Ada|1": "ada"}}, {"sub": "Ada|1"}, "ada"),
        ({"sign_in": "mapped", "principals": {"repo:o/r:ref:refs/heads/main": "ci"}},
         {"sub": "repo:o/r:ref:refs/heads/main"}, "ci"),
    ],
)  # fmt: skip
def test_who_calls(settings: dict[str, Any], claims: dict[str, Any], principal: str) -> None:
    token = told(section(**settings), admin=True, kind="worker", scopes=["admin"], groups=["engineers"], **claims) if (
        "sub" not in claims) else told(section(**settings), **claims)  # fmt: skip
    assert callers.principal_of(token) == principal
    made = callers.caller(token, principal, frozenset({"team"}), "192.0.2.1")
    assert (made.kind, made.admin, made.scopes, made.groups) == ("user", False, (), {"team"})


@pytest.mark.parametrize(
    ("settings", "claims", "why"),
    [
        ({"sign_in": "nobody"}, {}, "are for trusted publishing: exchange this one at /v1/tokens/exchange"),
        ({"principal_claim": "upn"}, {}, "it lacks 'upn'"),
        ({"principal_claim": "upn"}, {"upn": ["ada"]}, "it lacks 'upn'"),
        ({"principal_claim": "email"}, {"email": "ada@example.com"}, "email_verified"),
        ({"principal_claim": "email"}, {"email": "ada@example.com", "email_verified": "true"}, "email_verified"),
        ({}, {"sub": "Ada"}, "is no name for a principal"),
        ({}, {"sub": "a:b"}, "is no name for a principal"),
        ({}, {"sub": "@engineers"}, "is no name for a principal"),
        ({}, {"sub": "ada\n"}, "is no name for a principal"),
        ({}, {"sub": "аda"}, "is no name for a principal"),
        ({}, {"sub": "a" * 80}, "is no name for a principal"),
        ({"sign_in": "mapped", "principals": {"Ada": "ada"}}, {"sub": "ada"}, "who is not listed here"),
    ],
)
def test_who_does_not_call(settings: dict[str, Any], claims: dict[str, Any], why: str) -> None:
    with pytest.raises(UnauthenticatedError, match=why):
        callers.principal_of(told(section(**settings), **claims))


def test_groups_are_believed_where_that_was_said_and_never_local_ones() -> None:
    claims = {"groups": ["engineers", "ada", "Bad Name", 7, "@x"], "roles": "admin"}
    assert callers.groups_of(told(section(), **claims)) == frozenset()
    assert callers.groups_of(told(section(groups_claim="roles"), **claims)) == frozenset()
    assert callers.groups_of(told(section(groups_claim="groups"), **claims)) == {"corp:@engineers", "corp:@ada"}


def test_scopes_are_the_issuers() -> None:
    issuer = section(scopes=["archive:push:etl"])
    assert callers.caller(told(issuer), "corp:ada", frozenset(), "").scopes == ("archive:push:etl",)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"issuer": "http://issuer.example.com"}, "issuer is to be an https:// URL"),
        ({"issuer": "http://127.0.0.1:1"}, "issuer is to be an https:// URL"),
        ({"issuer": "http://192.0.2.1", "unsafe_http_on_loopback": True}, "issuer is to be an https:// URL"),
        ({"issuer": "http://localhost.example.com", "unsafe_http_on_loopback": True}, "issuer is to be"),
        ({"issuer": "https://ada:secret@issuer.example.com"}, "issuer is to be an https:// URL"),
        ({"issuer": "https://issuer.example.com#x"}, "issuer is to be an https:// URL"),
        ({"issuer": "https://issuer.example.com?x"}, "issuer is to have no query"),
        ({"issuer": "https://issuer.example.com:x"}, "issuer is to be an https:// URL"),
        ({"issuer": "https://"}, "issuer is to be an https:// URL"),
        ({"issuer": ""}, "issuer is to be an https:// URL"),
        ({"jwks_url": "http://issuer.example.com/keys"}, "jwks_url is to be an https:// URL"),
        ({"audience": ""}, "audience"),
        ({"audience": ...}, "audience"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"name": "Corp"}, "name"),
        ({"name": "corp:x"}, "name"),
        ({"principals": {"ada": "corp:ada"}}, "principals"),
        ({"principals": {"ada": "Ada"}}, "principals"),
        ({"sign_in": "mapped"}, "'mapped' needs it"),
        ({"sign_in": "nobody", "principals": {"ada": "ada"}}, "'mapped' needs it"),
        ({"issuer": "https://token.actions.githubusercontent.com"}, "anybody can get a token of this issuer"),
        ({"issuer": "https://token.actions.githubusercontent.com/corp"}, "anybody can get a token of this issuer"),
        ({"issuer": "https://gitlab.com"}, "anybody can get a token of this issuer"),
        ({"scopes": ["everything"]}, "scopes"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=str,
)
def test_settings_that_are_refused(changes: dict[str, Any], why: str) -> None:
    fields = {"name": "corp", "issuer": URL, "audience": AUDIENCE, "sign_in": "everybody", **changes}
    given = {name: value for name, value in fields.items() if value is not ...}
    with pytest.raises(ValueError, match=why):
        IssuerSection.model_validate(given)


def test_two_issuers_have_two_names_and_two_urls() -> None:
    one, other = section().model_dump(), section(name="other", issuer=URL + "/other").model_dump()
    assert len(OidcSection.model_validate({"issuers": [one, other]}).issuers) == 2
    with pytest.raises(ValueError, match="two issuers have the same name"):
        OidcSection.model_validate({"issuers": [one, {**other, "name": "corp"}]})
    with pytest.raises(ValueError, match="two issuers have the same issuer"):
        OidcSection.model_validate({"issuers": [one, {**other, "issuer": URL}]})


def test_an_unsafe_issuer_is_on_loopback_only() -> None:
    for url in ("http://127.0.0.1:1", "http://[::1]:1/realm", "http://localhost"):
        assert section(issuer=url, unsafe_http_on_loopback=True).discovery_url.endswith(
            "/.well-known/openid-configuration"
        )
