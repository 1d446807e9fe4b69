"""Wrong labels: what models that did not train on an image say against its boxes, and the corrected file."""
