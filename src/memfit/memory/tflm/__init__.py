"""The arena of TensorFlow Lite Micro, from a `.tflite` file alone."""

from memfit.memory.tflm.arena import Arena, Category, Item, arena
from memfit.memory.tflm.builds import BUILDS, VERSION, Build
from memfit.memory.tflm.head import HeadBuffer, buffers, place

__all__ = ["BUILDS", "VERSION", "Arena", "Build", "Category", "HeadBuffer", "Item", "arena", "buffers", "place"]
