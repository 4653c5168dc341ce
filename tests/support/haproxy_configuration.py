"""HAProxy's and the SPOE's configuration for agents under test."""

HAPROXY_CFG = """\
global
    nbthread 1
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s

frontend web
    bind "${FRONTEND}"
    %s
    default_backend origin

backend origin
    server origin unix@origin.sock

listen answers
    bind unix@origin.sock
    http-request return status 200

backend agents
.if version_atleast(3.1)
    mode spop
.else
    mode tcp
.endif
    option spop-check
    # An agent that refuses connections is not tried again a second later, with requests waiting.
    retries 0
    %s
    server agent "${AGENT}" check %s
"""

SPOE_CFG = """
[{agent}]
spoe-agent {agent}
    messages {messages}
    {groups}
    option var-prefix {agent}
    register-var-names {names}
    option continue-on-error
    option set-on-error error
    timeout hello 2s
    timeout idle 30s
    timeout processing {processing}
    use-backend agents
"""


def haproxy_cfg(
    *lines: str, agents: tuple[str, ...] = ("tested",), server: str = "", backend: str = ""
) -> str:
    """Return a haproxy.cfg that filters by these agents.

    Requests are answered by an origin of HAProxy's own with 200 and nothing else.

    Args:
        lines: further lines of the frontend.
        agents: the engines, one for each spoe-agent in spoe.cfg.
        server: parameters of the agents' server, which is checked.
        backend: a further line of the agents' backend.
    """
    filters = [f"filter spoe engine {agent} config spoe.cfg" for agent in agents]
    return HAPROXY_CFG % ("\n    ".join((*filters, *lines)), backend, server)


def spoe_cfg(
    sections: str,
    *,
    messages: str,
    agent: str = "tested",
    names: str = "",
    groups: str = "",
    processing: str = "2s",
) -> str:
    """Return a spoe.cfg, or with another agent a further part of it.

    Args:
        sections: the spoe-message and spoe-group sections.
        messages: the names of the messages sent on events.
        agent: the agent's name, also its engine's and its variables' prefix.
        names: the variables that nothing else in the configuration names.
        groups: the names of the groups.
        processing: what a request waits at most.
    """
    text = SPOE_CFG.format(
        agent=agent,
        messages=messages,
        groups=f"groups {groups}" if groups else "",
        names=names or "error",
        processing=processing,
    )
    return text + sections


def show(**headers: str) -> tuple[str, ...]:
    """Return the rules that add headers with the values of sample expressions to answers.

    An underscore in a name becomes the hyphen that a header has.
    """
    return tuple(
        f'http-response set-header {name.replace("_", "-")} "%[{expression}]"'
        for name, expression in headers.items()
    )
