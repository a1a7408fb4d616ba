"""Pretrained encoders of other libraries, frozen, behind one small protocol (base.py); found by resolve.py."""
