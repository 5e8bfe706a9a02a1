"""Tokens of other issuers: every way in which one can be wrong, each with the check that refuses it; and who it then is."""

from __future__ import annotations

import json
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
from tests.forgeries import FORGERIES
from tests.issuer import ALGORITHMS, AUDIENCE, KINDS, Issuer, encoded, private_key, public_jwk

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


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_bad_token_is_refused_by_its_check(name: str) -> None:
    make, why = FORGERIES[name]
    issuer = Issuer()
    token = make(issuer, NOW_US)
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
