"""Faster and Mask R-CNN on an encoder: object detection and instance segmentation."""
