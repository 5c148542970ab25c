"""Loading and unloading models, for HTTP and gRPC: who may do it, and which parameters are refused."""

from service.access import Access
from service.errors import BadRequestError, ForbiddenError
from service.headers import Headers
from service.protocol import Parameters
from service.settings import Settings


def authorize(settings: Settings, access: Access, headers: Headers) -> None:
    """Raises what `Access.check_admin` raises, and `ForbiddenError` unless `repository_control` is `explicit`."""
    if settings.repository_control != "explicit":
        raise ForbiddenError(
            f"load and unload are off: repository_control is {settings.repository_control}; "
            "set BNFOLD_REPOSITORY_CONTROL=explicit"
        )
    access.check_admin(headers)


def refuse_files(parameters: Parameters) -> None:
    """Raises `BadRequestError` for the parameters by which Triton takes a model's files and configuration."""
    if any(name.startswith("file:") for name in parameters):
        raise BadRequestError("files are not taken here; publish the version into the repository, then load the model")
    if "config" in parameters:
        raise BadRequestError(
            "a config is not taken here; the model's directory and the service's settings say how it is served"
        )
