# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in of AWS on loopback: moto's server, with what it lacks, a record of what it was sent, and faults on demand.

moto drops much of a launch (metadata options, encryption, cards, market, placement) and allows what EC2 refuses,
so tests look at the record. It answers nothing about placement groups, quotas of EC2, prices and the console: those
answers are here, in front of it, so that nothing leans on its insides.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import threading
import typing as t
import urllib.parse
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

os.environ.setdefault("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
os.environ.setdefault("MOTO_ENABLE_KEYPAIR_VALIDATION", "true")

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

IMAGE = "ami-1e749f67"
"""One of moto's, for x86-64."""
READS = re.compile(r"Describe|Get|List|Head")
Answer = tuple[int, str, str]
"""Status, type and body."""


@dataclass
class Request:
    service: str
    region: str
    action: str
    method: str
    params: dict[str, str]

    @property
    def mutates(self) -> bool:
        if self.service == "s3":
            return self.method not in ("GET", "HEAD")
        return not READS.match(self.action) and self.params.get("DryRun") != "true"

    def values(self, prefix: str) -> list[str]:
        """InstanceId.1, InstanceId.2, … in their order."""
        numbered = {
            int(name.rpartition(".")[2]): value
            for name, value in self.params.items()
            if re.fullmatch(rf"{re.escape(prefix)}\.\d+", name)
        }
        return [numbered[number] for number in sorted(numbered)]

    def tags(self, prefix: str = "") -> dict[str, str]:
        """Those of a TagSpecification, or of a request about tags."""
        names = [name for name in self.params if re.fullmatch(rf"{re.escape(prefix)}\.?Tag\.\d+\.Key", name)]
        return {self.params[name]: self.params[name.removesuffix("Key") + "Value"] for name in names}


class Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: t.Any) -> None:
        pass


Fault = t.Callable[[Request], "tuple[str, str] | None"]


@dataclass
class Endpoint:
    """Callable as WSGI. `faults`: functions that answer a request with code and message, or let it pass."""

    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    quota: float | None = 768.0
    price: float | None = 2.5
    console: t.Callable[[str], str] = lambda instance: ""
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    launches: dict[str, Answer] = field(default_factory=dict)
    """By client token: EC2 answers the same again."""
    address: str = ""

    def start(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Silent)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()

    def reset(self) -> None:
        self._moto({**_EMPTY, "PATH_INFO": "/moto-api/reset", "HTTP_HOST": self.address.removeprefix("http://")}, b"")
        fresh = Endpoint()
        for name in ("requests", "faults", "quota", "price", "console", "groups", "launches"):
            setattr(self, name, getattr(fresh, name))

    @property
    def mutations(self) -> list[str]:
        return [request.action or f"{request.method} {request.service}" for request in self.requests if request.mutates]

    def sent(self, action: str) -> list[Request]:
        return [request for request in self.requests if request.action == action]

    def environment(self) -> dict[str, str]:
        """What leads boto3 here; nothing of an account of this machine's user."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    # WSGI

    def __call__(self, environ: dict[str, t.Any], start_response: t.Callable[..., t.Any]) -> t.Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        request = _read(environ, body)
        self.requests.append(request)
        answer = self._own(request)
        if answer is None and request.action == "RunInstances" and request.params.get("DryRun") != "true":
            status, headers, content = self._moto(environ, body)
            answer = (status, dict(headers).get("Content-Type", "text/xml"), content.decode())
            if status == 200:
                self.launches[request.params["ClientToken"]] = answer
        if answer is None:
            environ["wsgi.input"] = io.BytesIO(body)
            return t.cast("t.Iterable[bytes]", self.moto(environ, start_response))
        status, kind, text = answer
        content = text.encode()
        start_response(
            f"{status} {'OK' if status == 200 else 'No'}",
            [("Content-Type", kind), ("Content-Length", str(len(content)))],
        )
        return [content]

    def _moto(self, environ: dict[str, t.Any], body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        said: list[t.Any] = []
        asked = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        content = b"".join(self.moto(asked, lambda status, headers, _info=None: said.extend((status, headers))))
        return int(said[0].split()[0]), said[1], content

    def _own(self, request: Request) -> Answer | None:
        for fault in self.faults:
            refusal = fault(request)
            if refusal:
                return _refusal(request, *refusal)
        name = f"_{request.service.replace('-', '_')}_{request.action}"
        answers: t.Callable[[Request], Answer | None] = getattr(self, name, lambda _request: None)
        return answers(request)

    def _ec2_RunInstances(self, request: Request) -> Answer | None:
        """EC2 takes no launch for a placement group that is not there, and launches once for a token."""
        group = request.params.get("Placement.GroupName")
        if group and group not in self.groups:
            return _refusal(request, "InvalidPlacementGroup.Unknown", f"The placement group {group} is unknown")
        return self.launches.get(request.params.get("ClientToken", ""))

    def _ec2_CreatePlacementGroup(self, request: Request) -> Answer:
        name = request.params["GroupName"]
        self.groups[name] = {"strategy": request.params["Strategy"], **request.tags("TagSpecification.1")}
        return _xml(request, f"<placementGroup>{self._group(name)}</placementGroup>")

    def _ec2_DeletePlacementGroup(self, request: Request) -> Answer:
        self.groups.pop(request.params["GroupName"], None)
        return _xml(request, "<return>true</return>")

    def _ec2_DescribePlacementGroups(self, request: Request) -> Answer:
        names = [
            name for name in self.groups if all(_matches(name, self.groups[name], one) for one in _filters(request))
        ]
        items = "".join(f"<item>{self._group(name)}</item>" for name in names)
        return _xml(request, f"<placementGroupSet>{items}</placementGroupSet>")

    def _group(self, name: str) -> str:
        strategy = self.groups[name]["strategy"]
        inside = {"groupName": name, "groupId": f"pg-{name}", "state": "available", "strategy": strategy}
        return "".join(f"<{key}>{value}</{key}>" for key, value in inside.items())

    def _ec2_GetConsoleOutput(self, request: Request) -> Answer:
        instance = request.params["InstanceId"]
        text = base64.b64encode(self.console(instance).encode()).decode()
        return _xml(request, f"<instanceId>{instance}</instanceId><output>{text}</output>")

    def _servicequotas_GetServiceQuota(self, request: Request) -> Answer | None:
        if self.quota is None:
            return _refusal(request, "NoSuchResourceException", "no such quota")
        return 200, "application/x-amz-json-1.1", json.dumps({"Quota": {"Value": self.quota}})

    def _pricing_GetProducts(self, request: Request) -> Answer:
        if self.price is None:
            return _refusal(request, "AccessDeniedException", "not authorized to perform pricing:GetProducts")
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": str(self.price)}}
        product = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}}
        return 200, "application/x-amz-json-1.1", json.dumps({"PriceList": [json.dumps(product)]})

    def _ssm_GetParameter(self, request: Request) -> Answer | None:
        if "/deeplearning/" not in request.params["Name"]:
            return None
        told = {"Parameter": {"Name": request.params["Name"], "Type": "String", "Value": IMAGE}}
        return 200, "application/x-amz-json-1.1", json.dumps(told)


_EMPTY = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.url_scheme": "http",
    "wsgi.errors": io.StringIO(),
    "wsgi.version": (1, 0),
}


def _read(environ: dict[str, t.Any], body: bytes) -> Request:
    signed = re.search(r"Credential=[^/]*/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    region, service = signed.groups() if signed else ("", "")
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        params = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in json.loads(body or b"{}").items()
        }
        action = target.rpartition(".")[2]
    else:
        form = body.decode(errors="replace") if "urlencoded" in environ.get("CONTENT_TYPE", "") else ""
        params = dict(urllib.parse.parse_qsl(form, keep_blank_values=True))
        action = params.get("Action", "")
    return Request(service, region, action, environ["REQUEST_METHOD"], params)


def _filters(request: Request) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    while f"Filter.{len(found) + 1}.Name" in request.params:
        number = len(found) + 1
        found.append((request.params[f"Filter.{number}.Name"], request.values(f"Filter.{number}.Value")))
    return found


def _matches(name: str, group: dict[str, str], wanted: tuple[str, list[str]]) -> bool:
    what, values = wanted
    has = {"group-name": name, "state": "available"}.get(what) or group.get(what.removeprefix("tag:"))
    return has in values


def _xml(request: Request, inside: str) -> Answer:
    space = "http://ec2.amazonaws.com/doc/2016-11-15/"
    return (
        200,
        "text/xml",
        f'<{request.action}Response xmlns="{space}"><requestId>x</requestId>{inside}</{request.action}Response>',
    )


def _refusal(request: Request, code: str, message: str) -> Answer:
    if request.service in ("servicequotas", "pricing", "ssm"):
        return 400, "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message})
    status = 500 if code.startswith("Insufficient") else 403 if "Auth" in code or "Denied" in code else 400
    if request.service == "ec2":
        inside = f"<Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></Errors>"
        return status, "text/xml", f"<Response>{inside}<RequestID>x</RequestID></Response>"
    inside = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return status, "text/xml", f"<ErrorResponse>{inside}<RequestId>x</RequestId></ErrorResponse>"
