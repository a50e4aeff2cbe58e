"""A browser and programs at the test's provider: `client.py PORT user SUB [RESOURCE]` logs a user in by the authorization
code flow with PKCE, `client.py PORT robot RESOURCE` gets a token without a user, `client.py PORT revoke TOKEN` ends one.
Prints the answer of the last request."""

import base64
import hashlib
import http.client
import re
import secrets
import sys
from urllib.parse import parse_qs, urlencode, urlsplit

PORT, VERB, *ARGUMENTS = sys.argv[1:]
COOKIES = {}


def request(method, path, form=None, expect=200):
    connection = http.client.HTTPConnection("127.0.0.1", int(PORT), timeout=20)
    headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in COOKIES.items())}
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    connection.request(method, path, urlencode(form) if form is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    for cookie in answer.headers.get_all("Set-Cookie") or []:
        name, value = cookie.split(";")[0].split("=", 1)
        COOKIES[name] = value
    if answer.status != expect:
        sys.exit(f"{method} {path}: {answer.status} {text}")
    return answer.headers.get("Location") or text


def path_of(url):
    parts = urlsplit(url)
    return parts.path + ("?" + parts.query if parts.query else "")


def user(sub, *resource):
    verifier = secrets.token_urlsafe(32)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    target = {"resource": resource[0]} if resource else {}
    scope = "openid mail" if resource else "openid"
    query = {"client_id": "mail-client", "response_type": "code", "redirect_uri": "http://localhost/", "scope": scope}
    query |= {"code_challenge": challenge, "code_challenge_method": "S256"} | target
    place = request("GET", "/auth?" + urlencode(query), expect=303)
    for prompt in ["login", "consent"]:
        page = request("GET", path_of(place))
        action = re.search(r'<form[^>]* action="([^"]+)"', page).group(1)
        form = {"prompt": prompt} | ({"login": sub, "password": "any"} if prompt == "login" else {})
        place = request("POST", path_of(action), form, expect=303)
        place = request("GET", path_of(place), expect=303)
    code = parse_qs(urlsplit(place).query)["code"][0]
    form = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier}
    form |= {"client_id": "mail-client", "redirect_uri": "http://localhost/"} | target
    return request("POST", "/token", form)


def robot(resource):
    form = {"grant_type": "client_credentials", "client_id": "robot", "client_secret": "robot-secret"}
    return request("POST", "/token", form | {"scope": "mail", "resource": resource})


def revoke(token):
    return request("POST", "/token/revocation", {"token": token, "client_id": "mail-client"})


print({"user": user, "robot": robot, "revoke": revoke}[VERB](*ARGUMENTS))
