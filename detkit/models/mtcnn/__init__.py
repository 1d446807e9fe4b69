"""MTCNN (Zhang, Zhang, Li, Qiao, IEEE Signal Processing Letters 2016): three small networks in a row, on a pyramid."""
