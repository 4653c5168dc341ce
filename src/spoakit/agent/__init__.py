"""The agent framework: what declares variables, handlers and resources, and what calls them."""

from spoakit.agent.agent import Agent

__all__ = ["Agent"]
