"""Boxes drawn into images, and images written."""
