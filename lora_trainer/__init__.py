"""Train LoRA: a LoRA trainer for the AUTOMATIC1111 WebUI that also runs by itself. Read
`core/pipeline.py` first.
"""

__version__ = "0.1.0"
