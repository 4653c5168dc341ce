"""Agent framework: declarations of variables, handlers and resources, and their calls."""

from spoakit.agent.agent import Agent

__all__ = ["Agent"]
