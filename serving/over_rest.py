"""Asks a server over REST, with the standard library alone."""

import base64
import http.client
import json
import urllib.parse

from .errors import DeadlineExceeded, NotFound, ServingError, Unavailable

ERRORS = {503: Unavailable, 504: DeadlineExceeded, 404: NotFound}


class Rest:
    """One server, one model; a connection for each request, so that threads may share an object.

    Arguments:
        address: `host:port`.
        name, version: the model; the newest version that is loaded where `version` is None.
    """

    def __init__(self, address: str, name: str, version: int | None):
        self.address = address
        self.path = f"/v1/models/{urllib.parse.quote(name, safe='')}" + (f"/versions/{version}" if version is not None else "")

    def close(self) -> None:
        """Nothing is kept open."""

    def predict(self, signature: str, inputs: dict[str, list], seconds: float) -> dict[str, list]:
        """Columns of inputs by name -> columns of outputs by name."""
        columns = {name: [_sendable(value) for value in values] for name, values in inputs.items()}
        body = {"signature_name": signature, "inputs": columns}
        outputs = self._call("POST", self.path + ":predict", body, seconds, "outputs")
        return outputs if isinstance(outputs, dict) else {"outputs": outputs}  # a single output comes without its name

    def status(self, seconds: float) -> dict[int, str]:
        """State of every version that the server knows of."""
        versions = self._call("GET", self.path, None, seconds, "model_version_status")
        return {int(version["version"]): version["state"] for version in versions}

    def signatures(self, seconds: float) -> dict:
        """Signatures by name."""
        return self._call("GET", self.path + "/metadata", None, seconds, "metadata")["signature_def"]["signature_def"]

    def _call(self, method: str, path: str, body: dict | None, seconds: float, key: str):
        connection = http.client.HTTPConnection(self.address, timeout=seconds)
        try:
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, path, sent, {"Content-Type": "application/json"} if sent else {})
            response = connection.getresponse()
            status, text = response.status, response.read()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {self.address}") from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # refused, reset, unknown host, cut short
            raise Unavailable(f"{self.address}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        try:
            answer = json.loads(text)
            found = answer[key if status == 200 else "error"]
        except (ValueError, KeyError, TypeError):  # not TF Serving's own words: a proxy, or another server
            status, found = status if status != 200 else 0, text[:200].decode("utf-8", "replace")
        if status == 200:
            return found
        raise ERRORS.get(status, ServingError)(f"HTTP {status}: {' '.join(str(found).split())}")


def _sendable(value):
    """JSON holds Unicode alone: bytes that are not go as base64, which TF Serving takes for any string."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}
