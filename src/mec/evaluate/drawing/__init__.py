"""Draw detections, tracks and masks on images and videos."""
