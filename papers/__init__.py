"""The sibling papers, one file each, written as what differs from pretrain.py."""
