"""Images, masks and boxes from storage to a uint8 batch."""
