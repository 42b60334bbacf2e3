"""S&D Messenger itself: tensors in, tensors out. Knows no file format of scans."""
