-- id, looks -> 1, or 0 for no such user
local id = ARGV[1]
local name = redis.call('HGET', p .. 'users', id)
if not name then
    return 0
end
redis.call('HDEL', p .. 'users', id)
for i = 2, #ARGV do
    if redis.call('HGET', p .. 'names', ARGV[i]) == id then
        redis.call('HDEL', p .. 'names', ARGV[i])
    end
end
redis.call('HDEL', p .. 'passwords', id)
forget_chats(id)
local node = holder(id)
if node then
    put_offline(node, id)
end
return 1
