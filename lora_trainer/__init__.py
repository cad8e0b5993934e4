"""Train LoRA: a LoRA trainer for the AUTOMATIC1111 WebUI that also runs by itself. Read
`runs/pipeline.py` first.
"""

__version__ = "0.1.0"
