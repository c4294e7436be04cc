set(RWKV_WKV_SOURCES
  wkv/registry.cpp
)
