"""TLS context of the listening sockets."""

import ssl

from spoakit.exceptions import ConfigurationError
from spoakit.server.settings import ListenTls


def server_context(settings: ListenTls) -> ssl.SSLContext:
    """Return the context of a server, for TLS 1.2 and 1.3.

    A service creates one before it forks, so that workers do not read the key, and each can resume
    the sessions of all others.

    Raises:
        ConfigurationError: a file cannot be read, or its content is not usable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # The empty password makes an encrypted key an error, instead of a prompt.
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except OSError as error:
        files = settings.certificate + (f" with key {settings.key}" if settings.key else "")
        raise ConfigurationError(f"tls certificate {files}: {_reason(error)}") from error
    if settings.ca is not None:
        try:
            context.load_verify_locations(settings.ca)
        except OSError as error:
            raise ConfigurationError(f"tls ca {settings.ca}: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"it must be a PEM file with a usable certificate or key ({error.reason or error})"
    return error.strerror or str(error)
