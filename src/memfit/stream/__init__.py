"""Streaming: parts of a network computed together, row by row, so that big networks run in little memory."""

from memfit.stream.network import StreamNetwork, StreamOp, Value, network_of, records
from memfit.stream.plan import StreamPlan, plan_stream

__all__ = ["StreamNetwork", "StreamOp", "StreamPlan", "Value", "network_of", "plan_stream", "records"]
