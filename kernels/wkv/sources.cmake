set(RWKV_WKV_SOURCES
  wkv/registry.cpp
  wkv/wkv7_op.cpp
  wkv/cpu/wkv7_common.cpp
  wkv/cpu/wkv7_serial.cpp
)
