-- id -> 1, or 0 for no such user
local id = ARGV[1]
local name = redis.call('HGET', p .. 'users', id)
if not name then
    return 0
end
redis.call('HDEL', p .. 'users', id)
redis.call('HDEL', p .. 'names', ARGV[2])
redis.call('HDEL', p .. 'passwords', id)
forget_chats(id)
local node = holder(id)
if node then
    put_offline(node, id)
end
return 1
