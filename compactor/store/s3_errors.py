"""boto3's exceptions as ours: what may be tried again, what somebody has to put right, and what is lost.

Whatever may have reached the store is a NoAnswer; only a failed connection is known to have had no
effect. 503 is none either: MinIO says SlowDown too when a write reached some of its drives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError as Urllib3Error

from compactor.store.base import NoAnswer, NoSuchKey, NotSupported, PreconditionFailed
from compactor.store.retry import Altered, Unreached
from compactor.url import StoreUrl
from ourdb.errors import Error, InvalidError, NotFoundError, RefusedError

INTEGRITY = frozenset(
    {
        "BadDigest",
        "InvalidDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
    }
)
CREDENTIALS = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "InvalidSecurity",
        "TokenRefreshRequired",
        "RequestTimeTooSkewed",
        "RequestExpired",
        "AuthorizationHeaderMalformed",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "AuthFailure",
        "MissingSecurityHeader",
    }
)
PERMISSION = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AccountProblem",
        "NotSignedUp",
        "UnauthorizedAccess",
        "AccessForbidden",
    }
)
BUSY = frozenset(
    {
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "RequestTimeout",
        "InternalError",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "TooManyRequests",
        "BandwidthLimitExceeded",
        "OperationAborted",
    }
)
ELSEWHERE = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "IllegalLocationConstraintException",
    }
)
WANTS_MD5 = frozenset(
    {
        "MissingContentMD5",
        "MissingContentLength",
        "NotImplemented",
    }
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.LoginError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
)
_NOT_CONNECTED = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)
_MISUSED = (boto.ParamValidationError, boto.ValidationError, boto.InvalidEndpointConfigurationError)


class NotModified(Error):
    """304: the object is the one that the caller has."""


class NotSatisfiable(Error):
    """416: the object ends before the range."""


class NoSuchUpload(Error):
    """The multipart upload was completed or aborted."""


class NotUnderstood(Error):
    """400 for no reason that has a name here."""


class WantsMd5(NotSupported):
    """The store wants Content-MD5 in place of newer checksums: 411, MissingContentMD5, or 501."""


@contextlib.contextmanager
def translated(url: StoreUrl, endpoint: str, key: str) -> Iterator[None]:
    """Errors of boto3 within become ours."""
    try:
        yield
    except boto.ClientError as error:
        raise _answer(error, url, endpoint, key) from error
    except (boto.BotoCoreError, Urllib3Error, OSError) as error:
        raise _failure(error, url, endpoint) from error


def _failure(error: Exception, url: StoreUrl, endpoint: str) -> Error:
    """What kept an answer from coming."""
    if isinstance(error, _NO_CREDENTIALS):
        return RefusedError(
            f"no usable credentials for {endpoint}: {error} (set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
            kind="credentials",
            endpoint=endpoint,
        )
    if isinstance(error, _NOT_CONNECTED):
        return Unreached(f"cannot connect to {endpoint}: try again later", endpoint=endpoint)
    if isinstance(error, _MISUSED):
        return InvalidError(f"not a valid request to {url.display}: {error}")
    return NoAnswer(f"no answer from {endpoint}: {error}", endpoint=endpoint)


def _answer(error: boto.ClientError, url: StoreUrl, endpoint: str, key: str) -> Error:
    """What the store said."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = str(error.response.get("Error", {}).get("Message", "") or "no reason given")
    return (
        _about_object(code, status, url, key)
        or _about_access(code, status, text, url, endpoint)
        or _about_request(code, status, text, url, endpoint, key)
    )


def _about_object(code: str, status: int, url: StoreUrl, key: str) -> Error | None:
    if code == "NoSuchUpload":
        return NoSuchUpload(f"no such multipart upload: {url.display} {key}", key=key)
    if code == "NoSuchKey" or (code == "404" and status == 404):
        return NoSuchKey(f"no such object: {url.display} {key}", key=key)
    if status == 304:
        return NotModified(f"not modified: {url.display} {key}", key=key)
    if status == 416 or code == "InvalidRange":
        return NotSatisfiable(f"object ends before the range: {url.display} {key}", key=key)
    if status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
        return PreconditionFailed(
            f"somebody else was first: {url.display} {key}", status=status or 412, key=key
        )
    return None


def _about_access(code: str, status: int, text: str, url: StoreUrl, endpoint: str) -> Error | None:
    if code == "NoSuchBucket":
        return NotFoundError(
            f"no such bucket: {url.bucket} at {endpoint} (make it first)", kind="no_bucket", bucket=url.bucket
        )
    if code in CREDENTIALS or status == 401:
        return RefusedError(
            f"{endpoint} refuses the credentials: {code}: {text}", kind="credentials", endpoint=endpoint
        )
    if code in PERMISSION or status == 403:
        return RefusedError(
            f"{endpoint} does not permit this in bucket {url.bucket}: {code}: {text}",
            kind="permission",
            endpoint=endpoint,
            bucket=url.bucket,
        )
    if code in ELSEWHERE or status in (301, 307):
        return InvalidError(f"bucket {url.bucket} is not in this region (say ?region=..): {code}: {text}")
    return None


def _about_request(code: str, status: int, text: str, url: StoreUrl, endpoint: str, key: str) -> Error:
    if code in INTEGRITY:
        return Altered(f"{endpoint} received other bytes than were sent: {code}: {key}", key=key)
    if code in WANTS_MD5 or status in (411, 501):
        return WantsMd5(f"{endpoint} does not support this request: {code}: {text}", endpoint=endpoint)
    if code in BUSY or status >= 500 or status == 429:
        return NoAnswer(f"{endpoint} is not available: {code}: {text}", endpoint=endpoint, status=status)
    if status == 409:
        return PreconditionFailed(f"somebody else was first: {url.display} {key}", status=409, key=key)
    if status == 405:
        return NotSupported(f"{endpoint} does not support this request: {code}: {text}", endpoint=endpoint)
    family = NotUnderstood if status == 400 else Error
    return family(f"{endpoint} refuses the request: {code}: {text}", endpoint=endpoint, status=status)
