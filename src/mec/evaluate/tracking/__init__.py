"""Tracking with frozen features, without training (UniTrack, Wang et al. 2021).

``sot`` moves a box and ``vos`` moves labels from frame to frame, on feature maps from ``dense_features``. ``mot``
assigns detections (boxes, masks, poses) to tracks (``association``) by features (``appearance``). ``runner`` has what
the tasks share, ``datasets`` the readers and writers, ``metrics`` the comparison with ground truth.
"""
